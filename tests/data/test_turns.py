"""What a turn may have besides a role and a text, and how each mistake in it is named."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.formats import RecordError, detect_format, parse_record
from qwen_job.data.order import order_problems
from qwen_job.data.turns import split_thought

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASK, ANSWER = Turn("user", "q"), Turn("assistant", "a")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def call(arguments: Any = None, **more: Any) -> dict[str, Any]:
    """Return an assistant's message with one call of ``f``."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": arguments}, **more}],
    }


def read(*messages: dict[str, Any], **beside: Any) -> Conversation:
    """Read a row of messages."""
    return parse_record({"messages": list(messages), **beside})


def refused(*messages: dict[str, Any], **beside: Any) -> tuple[str, str]:
    """Return field and message of the error that a row of messages gives."""
    with pytest.raises(RecordError) as caught:
        read(*messages, **beside)
    return caught.value.field, caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nso\n</think>\n\na", ("so", "a")),
        ("\n<think>so</think>a", ("so", "a")),
        ("<think>\n\n</think>\n\na", ("", "a")),
        ("<think>so</think>", ("so", "")),
        ("so\n</think>\n\na", ("so", "a")),
        ("<think>never closed", (None, "<think>never closed")),
        ("the tag </think> closes", (None, "the tag </think> closes")),
        ("a <think>so</think>", (None, "a <think>so</think>")),
        ("<think>so</think>a</think>b", ("so", "a</think>b")),
        ("", (None, "")),
    ],
)
def test_thoughts_at_the_start_of_an_answer_are_reasoning(text: str, expected: tuple[str | None, str]) -> None:
    assert split_thought(text) == expected
    [_, turn] = read(Q, {**A, "content": text}).turns
    assert (turn.reasoning, turn.text) == expected
    [_, turn] = parse_record({"query": "q", "response": text}).turns
    assert (turn.reasoning, turn.text) == expected
    written = parse_record({"messages": [Q, {**A, "content": text, "weight": 1}]}, thinking="as_written").turns[1]
    assert (written.reasoning, written.text) == (None, text)


def test_a_user_s_think_remains_text() -> None:
    assert read({**Q, "content": "<think>x</think>y"}, A).turns[0] == Turn("user", "<think>x</think>y")


@pytest.mark.parametrize("thinking", ["keep", "as_written"])
@pytest.mark.parametrize(
    "message",
    [
        call({"a": 1}),
        call('{"a": 1}', id="c1", type="function"),
        call("{"),
        call([1]),
        call(index=0),
        call(another="lost"),
        {**call(), "content": "<think>so</think>see"},
        {**call(), "content": ["no text"]},
        {**call(), "tool_calls": "[]"},
        {**call(), "tool_calls": [{"function": {"name": " "}}]},
        {**call(), "tool_calls": [{"function": {"name": ""}}], "content": ""},
        {"role": "tool", "content": "r", "tool_call_id": "c1"},
        {"role": "tool", "content": "r", "tool_call_id": " "},
        {"role": "tool", "content": "r", "tool_call_id": 1},
        {"role": "tool", "content": {"r": 1}, "tool_call_id": "c1"},
        {"role": "tool", "content": "<tool_response>r</tool_response><tool_response>s</tool_response>"},
    ],
)
def test_a_turn_is_read_alike_with_a_key_that_says_nothing(message: dict[str, Any], thinking: str) -> None:
    def said(message: dict[str, Any]) -> Any:
        try:
            return parse_record({"messages": [Q, message]}, thinking=thinking).turns
        except RecordError as error:
            return error.field, error.message

    assert said(message) == said({**message, "markdown": True})


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(key: str) -> None:
    assert read(Q, {**A, key: " so\n"}).turns[1] == Turn("assistant", "a", " so\n")
    assert parse_record({"instruction": "q", "output": "a", key: "so"}).turns[1] == Turn("assistant", "a", "so")
    for empty in (None, "", " \n"):
        assert read(Q, {**A, key: empty}).turns[1] == ANSWER
    assert refused(Q, {**A, key: ["so"]})[0] == f"messages[1].{key}"


def test_reasoning_given_twice_must_be_the_same() -> None:
    assert read(Q, {**A, "reasoning": "so", "thinking": "so"}).turns[1].reasoning == "so"
    assert refused(Q, {**A, "reasoning": "so", "thinking": "no"})[0] == "messages[1].thinking"
    inline = {**A, "content": "<think>\nso\n</think>\n\na"}
    assert read(Q, {**inline, "reasoning": "so"}).turns[1] == Turn("assistant", "a", "so")
    assert refused(Q, {**inline, "reasoning": "no"})[0] == "messages[1].reasoning"
    with pytest.raises(RecordError, match="reasoning: is given beside"):
        parse_record({"query": "q", "response": "<think>so</think>a", "reasoning": "no"})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"x": [1, null]}', {"x": [1, None]}), ({"x": None}, {"x": None}), ("", {}), (None, {}), ("{}", {}), ({}, {})],
)
def test_arguments_are_an_object_or_json_of_one(arguments: Any, expected: dict[str, Any]) -> None:
    assert read(Q, call(arguments)).turns[1].calls == (ToolCall("f", expected),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{x: 1}", "not JSON"),
        ("{'x': 1}", "not JSON"),
        ("[1]", "holds a list"),
        ('"{\\"x\\": 1}"', "converted to JSON twice"),
        ('{"x": 1, "x": 2}', "more than once"),
        ('{"x": NaN}', "not a finite number"),
        ('{"x": 1e999}', "larger than a number"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ('{"x": ' + "1" * 5000 + "}", "not JSON"),
        ([1], "is a list"),
        (7, "is a number"),
        ({"x": float("inf")}, "not finite"),
    ],
)
def test_arguments_that_are_no_object_are_refused(arguments: Any, said: str) -> None:
    field, message = refused(Q, call(arguments))
    assert field == "messages[1].tool_calls[0].function.arguments" and said in message


@pytest.mark.parametrize(
    ("calls", "field"),
    [
        ("f()", "tool_calls"),
        (7, "tool_calls"),
        (["f"], "tool_calls[0]"),
        ([{"arguments": "{}"}], "tool_calls[0].name"),
        ([{"function": "f"}], "tool_calls[0].function"),
        ([{"function": {"name": " ", "arguments": "{}"}}], "tool_calls[0].function.name"),
        ([{"name": "f", "type": "code"}], "tool_calls[0].type"),
        ([{"name": "f", "id": 7}], "tool_calls[0].id"),
        ([{"name": "f", "parameters": {"x": 1}}], "tool_calls[0].parameters"),
        ([{"function": {"name": "f"}, "output": "4"}], "tool_calls[0].output"),
    ],
)
def test_a_call_that_cannot_be_read_names_its_part(calls: Any, field: str) -> None:
    assert refused(Q, {**A, "tool_calls": calls})[0] == f"messages[1].{field}"


def test_a_call_needs_no_text_and_text_is_kept_beside_it() -> None:
    assert read(Q, {**call(), "content": "I look."}).turns[1] == Turn(
        "assistant", "I look.", calls=(ToolCall("f", {}),)
    )
    for content in (None, "", []):
        assert read(Q, {**call(), "content": content}).turns[1].text == ""
    without = call(index=0)
    del without["content"]
    assert read(Q, without) == read(Q, call())._replace(unused=("index",))
    assert refused(Q, {"role": "assistant"})[0] == "messages[1]"
    assert refused(Q, {**A, "content": None, "tool_calls": []})[0] == "messages[1].content"


def test_a_call_of_the_older_api_is_read() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    turns = read(Q, old, {"role": "function", "name": "f", "content": "4"}, A, functions=[TOOL["function"]]).turns
    assert turns[1:3] == (Turn("assistant", "", calls=(ToolCall("f", {"x": 1}),)), Turn("tool", "4", name="f"))
    assert refused(Q, {**old, **call(), "content": None})[0] == "messages[1].function_call"


@pytest.mark.parametrize("role", ["tool_call", "function_call"])
def test_a_call_may_be_a_turn(role: str) -> None:
    one, other = '{"name": "f", "arguments": {"x": 1}}', {"name": "g", "arguments": "{}"}
    calls = (ToolCall("f", {"x": 1}), ToolCall("g", {}))
    turns = read(Q, {**A, "content": "I look."}, {"role": role, "content": one}, {"role": role, "content": other}).turns
    assert turns == (ASK, Turn("assistant", "I look.", calls=calls))
    thought = {"role": role, "content": f"<think>\nso\n</think>\n\n[{one}]"}
    assert read(Q, thought).turns[1] == Turn("assistant", "", "so", calls[:1])
    for wrong in ("look it up", "", "[]", None, "<think>so</think>"):
        assert refused(Q, {"role": role, "content": wrong})[0] == "messages[1].content"


def test_turns_that_no_format_writes_apart_are_not_joined() -> None:
    assert [turn.role for turn in read(Q, A, call(), A).turns] == ["user", *["assistant"] * 3]
    problem = next(order_problems(read(Q, A, call())))
    assert problem.field == "turn 3 (assistant)" and "data.turn_order" in problem.message


@pytest.mark.parametrize("role", ["tool", "observation", "tool_response", "function"])
def test_a_result_has_many_roles(role: str) -> None:
    result = {"role": role, "content": "4", "tool_call_id": "c1", "name": "f"}
    assert read(Q, call(id="c1"), result).turns[2] == Turn("tool", "4", name="f", call_id="c1")
    assert refused(Q, call(), {**result, "tool_call_id": 1})[0] == "messages[2].tool_call_id"
    assert refused(Q, call(), {**result, "content": {"t": 4}})[0] == "messages[2].content"


@pytest.mark.parametrize(("role", "expected"), [("developer", "s"), ("system", "s")])
def test_a_developer_is_the_system(role: str, expected: str) -> None:
    assert read({"role": role, "content": "s"}, Q, A).system == expected
    middle = read(Q, A, {"role": role, "content": "s"}, Q, A)
    assert middle.turns[2] == Turn("system", "s") and not list(order_problems(middle))


@pytest.mark.parametrize("key", ["loss", "loss_scale", "weight", "train", "trainable", "learn"])
def test_a_switch_says_what_is_learnt(key: str) -> None:
    turns = read({**Q, key: 0}, {**A, key: 0}, {**Q, key: None}, {**A, key: 1.0}, Q, {**A, key: True}, Q, A).turns
    assert [turn.learn for turn in turns] == [None, False, None, True, None, True, None, None]
    for wrong in (0.5, 2, -1, "yes", float("nan"), [1]):
        assert refused(Q, {**A, key: wrong})[0] == f"messages[1].{key}"
    assert refused({**Q, key: 1}, A)[0] == f"messages[0].{key}"


def test_switches_must_agree() -> None:
    assert read(Q, {**A, "loss": 0, "weight": False}).turns[1].learn is False
    assert refused(Q, {**A, "loss": 0, "weight": 1})[0] == "messages[1].loss"
    one = {"role": "tool_call", "content": '{"name": "f"}'}
    assert refused(Q, {**A, "loss": 0}, {**one, "loss": 1})[0] == "messages[2]"
    assert read(Q, {**A, "loss": 0}, {**one, "loss": 0}).turns[1].learn is False


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [TOOL["function"]],
        [{"type": "function", **TOOL["function"]}],
        [{"function": TOOL["function"], "type": None}],
        [{"name": "f", "parameters": '{"type": "object"}'}],
        '[{"name": "f", "parameters": {"type": "object"}}]',
        TOOL,
        TOOL["function"],
        '{"name": "f", "parameters": {"type": "object"}}',
        ['{"name": "f", "parameters": {"type": "object"}}'],
    ],
)
def test_tools_are_functions_in_any_form(tools: Any) -> None:
    assert read(Q, A, tools=tools).tools == (TOOL,) == read(Q, A, functions=tools).tools
    assert parse_record({"instruction": "q", "output": "a", "tools": tools}).tools == (TOOL,)
    assert parse_record({"messages": [Q, A], "tools": tools}, "auto", frozenset({"tools"})).tools == ()


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        ("f", "tools"),
        ("7", "tools"),
        ({"nme": "f"}, "tools.name"),
        ("{}", "tools.name"),
        ({"f": {"description": "x"}}, "tools.name"),
        ({"type": "web_search"}, "tools.type"),
        ({"type": "function", "function": {"name": ""}}, "tools.function.name"),
        ([7], "tools[0]"),
        (["f"], "tools[0]"),
        ([{"type": "web_search"}], "tools[0].type"),
        ([{"type": "function"}], "tools[0].name"),
        ([TOOL, {"function": {"name": ""}}], "tools[1].function.name"),
        ([{"function": "f"}], "tools[0].function"),
        ([{"name": "f", "parameters": ["x"]}], "tools[0].parameters"),
        ([{"name": "f", "parameters": "x"}], "tools[0].parameters"),
    ],
)
def test_tools_that_are_none_name_their_part(tools: Any, field: str) -> None:
    assert refused(Q, A, tools=tools)[0] == field


def test_tools_given_twice_must_be_the_same() -> None:
    assert read(Q, A, tools=[TOOL], functions=[TOOL["function"]]).tools == (TOOL,)
    assert refused(Q, A, tools=[TOOL], functions=[{"name": "g"}])[0] == "functions"
    system = {"role": "system", "content": "You may call <tools>[...]</tools>"}
    assert refused(system, Q, A, tools=[TOOL])[0] == "system"


def test_calls_in_the_text_are_read_where_there_are_tools() -> None:
    text = 'I look.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    row = {**A, "content": text}
    assert read(Q, row).turns[1] == Turn("assistant", text)
    assert read(Q, row, tools=[TOOL]).turns[1] == Turn("assistant", "I look.", calls=(ToolCall("f", {"x": 1}),))
    result = {"role": "tool", "content": "<tool_response>\n4\n</tool_response>\n<tool_response>5</tool_response>"}
    assert read(Q, row, result).turns[1:] == (
        Turn("assistant", "I look.", calls=(ToolCall("f", {"x": 1}),)), Turn("tool", "4"), Turn("tool", "5"),
    )  # fmt: skip
    about = {**A, "content": "Qwen writes <tool_call>"}
    assert read(Q, about, tools=[TOOL]).turns[1].text == about["content"]
    xml = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
    field, said = refused(Q, {**A, "content": xml}, tools=[TOOL])
    assert field == "messages[1].<tool_call>" and "the XML of Qwen3-Coder and Qwen3.5" in said
    assert refused(Q, {**A, "content": "<tool_call>\nf(1)\n</tool_call>"}, tools=[TOOL])[0] == "messages[1].<tool_call>"


def test_a_row_may_have_options_of_the_template() -> None:
    assert read(Q, A, enable_thinking=False).options == {"enable_thinking": False}
    given = {"enable_thinking": None, "reasoning_effort": "low"}
    for options in (given, '{"reasoning_effort": "low"}'):
        assert read(Q, A, chat_template_kwargs=options).options == {"reasoning_effort": "low"}
    assert read(Q, A, enable_thinking=None, chat_template_kwargs={}).options == {}
    assert refused(Q, A, enable_thinking="no")[0] == "enable_thinking"
    assert refused(Q, A, enable_thinking=True, chat_template_kwargs={"enable_thinking": False})[0] == "enable_thinking"
    for wrong in ("no", 7, [1], "[1]"):
        assert refused(Q, A, chat_template_kwargs=wrong)[0] == "chat_template_kwargs"


def test_only_the_completion_of_a_prompt_is_learnt() -> None:
    row = {"prompt": [{"role": "system", "content": "s"}, Q, A, Q], "completion": [{**A, "reasoning": "so"}]}
    assert detect_format(row) == "prompt_completion"
    read = parse_record(row)
    assert read.system == "s"
    assert read.turns == (ASK, ANSWER._replace(learn=False), ASK, Turn("assistant", "a", "so"))
    assert parse_record({"prompt": "q", "completion": "<think>so</think>a"}).turns == (
        ASK,
        Turn("assistant", "a", "so"),
    )
    for wrong, field in (({"prompt": [Q, {**A, "loss": 1}], "completion": "a"}, "prompt"),
                         ({"prompt": "q", "completion": []}, "completion"),
                         ({"prompt": {}, "completion": "a"}, "prompt")):  # fmt: skip
        with pytest.raises(RecordError) as caught:
            parse_record(wrong, "prompt_completion")
        assert caught.value.field == field
    with pytest.raises(RecordError, match="completion: is missing"):
        parse_record({"prompt": "q"}, "prompt_completion")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([Q, call()], []),
        ([Q, call(), {"role": "tool", "content": ""}], []),
        ([Q, call(), {"role": "tool", "content": "4"}, A], []),
        ([Q, call(), {"role": "tool", "content": "4"}, call(), {"role": "tool", "content": "4"}, A, Q, A], []),
        ([Q, call(), {"role": "tool", "content": "4"}, Q, A], ["turn 4 (user)"]),
        ([Q, A, {"role": "tool", "content": "4"}, A], ["turn 3 (tool)"]),
        ([Q, {"role": "tool", "content": "4"}, A], ["turn 2 (tool)"]),
        ([{"role": "tool", "content": "4"}, A], ["turn 1 (tool)"]),
        ([Q, {**A, "content": "", "reasoning": "so"}], []),
        ([Q, call('{"x": "\\ud83d"}')], ["turn 2"]),
    ],
)
def test_order_with_tools(messages: list[dict[str, Any]], expected: list[str]) -> None:
    assert [problem.field for problem in order_problems(read(*messages))] == expected


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [Q, {"role": "Assistant", "content": "a"}],
            "is 'Assistant'; write system, user, assistant or tool; did you mean 'assistant'?",
        ),
        ([Q, call(), {"role": "tools", "content": "4"}], "did you mean 'tool'"),
        ([Q, call(), {"role": "tool", "content": {"t": 4}}], "such as its JSON"),
        ([Q, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}], "as tool_calls"),
        ([{"role": "user", "content": [{"type": "tool_result", "content": "4"}]}], "the role tool"),
        ([Q, {"role": "assistant", "content": [{"type": "thinking", "thinking": "so"}]}], "as reasoning_content"),
        ([Q, {"role": "tool_call", "content": "f(4)"}], "write a call"),
        ([{**Q, "reasoning": "so"}, A], "in the assistant's turn"),
        ([Q, {**A, "tool_call": {"name": "f"}}], "tool_calls in the assistant's turns"),
    ],
)
def test_a_common_mistake_is_answered_with_what_to_write(messages: list[dict[str, Any]], said: str) -> None:
    assert said in refused(*messages)[1]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([Q, call(), A], "follows a call without a result"),
        ([Q, call(), {"role": "tool", "content": "4"}, Q, A], "the assistant's answer to it is missing"),
        ([Q, {"role": "tool", "content": "4"}, A], "a result without a call"),
        ([Q, {**A, "content": '[Look Up(x="1"), g(y=2)]'}, {"role": "tool", "content": "4"}, A], "the form of ToolACE"),
        ([Q, Q, A], "should be the assistant's"),
    ],
)
def test_an_order_that_cannot_be_says_what_is_missing(messages: list[dict[str, Any]], said: str) -> None:
    assert said in next(order_problems(read(*messages))).message


@pytest.mark.parametrize("levels", [101, 20_000])
def test_objects_nested_without_end_are_refused(levels: int) -> None:
    deep: Any = {"a": 1}
    for _ in range(levels):
        deep = {"a": deep}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": deep}]}
    assert "nested too deeply" in refused(Q, asked, {"role": "tool", "content": "r"}, A)[1]
    assert "nested too deeply" in refused(Q, {**asked, "tool_calls": [{"name": deep}]}, A)[1]
    assert "nested too deeply" in refused(Q, A, tools=[{"name": "f", "parameters": deep}])[1]


def test_many_brackets_are_not_deep_and_words_are_no_numbers() -> None:
    wide = {"words": ["NaN", "Infinity"], "items": [{"a": []} for _ in range(200)]}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": wide}]}
    assert read(Q, asked, {"role": "tool", "content": "r"}, A).turns[1].calls == (ToolCall("f", wide),)
    assert "not finite" in refused(Q, A, tools=[{"name": "f", "parameters": {"most": float("inf")}}])[1]
