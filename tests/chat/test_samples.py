"""Samples: what is trained and what of it is learnt, template by template."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.chat.samples import Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate, Unrenderable
from qwen_job.errors import ModelError
from tests.chat.cases import CONTROLS, EXAMPLES, SHIPPED, answer, conversation_of, example, learnt, maker, talk, text_of

CALL = ToolCall("look", {"where": "x"})
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
HYBRID = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "qwen3_8")
OFF = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def samples(name: str, conversation: Conversation, **settings: Any) -> list[Sample]:
    return maker(name, **settings).samples(conversation, Counter())


def counted(name: str, conversation: Conversation, **settings: Any) -> Counter[str]:
    counts: Counter[str] = Counter()
    maker(name, **settings).samples(conversation, counts)
    return counts


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_last_sample_of_a_worked_example_is_its_whole_rendering(name: str) -> None:
    case = example(name)
    assert samples(case["template"], conversation_of(case))[-1].text == case["rendered_whole"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_worked_example_learns_is_learnt(name: str) -> None:
    case = example(name)
    spans = [text for sample in case["server_equal_samples"] for *_, text in sample["learn"]]
    found = [
        one for text in learnt(samples(case["template"], conversation_of(case))) for one in text.split("|im_end|>|")
    ]
    assert set(spans) <= {text if text.endswith("|im_end|>") else f"{text}|im_end|>" for text in found}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_prompt_of_a_worked_example_precedes_its_learnt_turn(name: str) -> None:
    case = example(name)
    prompts = [prompt["text"] for prompt in case["generation_prompts"]]
    before = []
    for sample in samples(case["template"], conversation_of(case)):
        so_far = ""
        for place, piece in enumerate(sample.pieces):
            if piece.learnt and not sample.pieces[place - 1].learnt:
                before.append(so_far)
            so_far += piece.text
    assert before == prompts


def test_a_template_that_keeps_all_is_one_sample() -> None:
    both = samples("qwen2_5", talk("a", "b", "c", "d"))
    assert learnt(both) == ["b<|im_end|>|d<|im_end|>"]


def test_dropped_reasoning_splits_at_the_turns_and_is_counted() -> None:
    chat = talk("a", answer("b", "r"), "c", answer("d", "s"))
    assert learnt(samples("qwen3", chat)) == [
        "<think>\nr\n</think>\n\nb<|im_end|>",
        "<think>\ns\n</think>\n\nd<|im_end|>",
    ]
    counts = counted("qwen3", chat)
    assert (counts["split_at_turns"], counts["samples_of_split"]) == (1, 2)


@pytest.mark.parametrize("name", HYBRID)
def test_several_thoughts_are_one_sample_if_asked_for(name: str) -> None:
    chat = talk("a", answer("b", "r"), "c", answer("d"), "e", answer("f", "s"))
    (sample,) = samples(name, chat, several_thoughts="join")
    assert len(sample.turns) == 3
    assert sample.text.count("<|im_start|>user") == 3
    assert [sample.text.count(word) for word in ("\nr\n", "\ns\n")] == [1, 1]
    assert sample.text.endswith("f<|im_end|>\n")
    assert counted(name, chat, several_thoughts="join")["split_at_turns"] == 0


@pytest.mark.parametrize("name", HYBRID)
def test_a_hybrid_learns_unreasoned_answers_behind_the_prompt_with_thinking_off(name: str) -> None:
    (sample,) = samples(name, talk("a", "b"))
    assert learnt([sample]) == ["b<|im_end|>"]
    assert f"{OFF}b" in sample.text


@pytest.mark.parametrize("name", ["qwen3_2507_thinking", "qwq"])
def test_without_a_switch_the_empty_block_is_shown_and_not_learnt(name: str) -> None:
    (sample,) = samples(name, talk("a", "b"))
    assert learnt([sample]) == ["b<|im_end|>"]
    assert f"{OFF}b" in sample.text


@pytest.mark.parametrize("name", [*HYBRID, "qwen3_2507_thinking", "qwq"])
def test_the_empty_block_is_learnt_if_asked_for(name: str) -> None:
    (sample,) = samples(name, talk("a", "b"), empty_think="learn")
    assert learnt([sample])[0].endswith("\n</think>\n\nb<|im_end|>")
    assert f"{OFF}b" in sample.text


@pytest.mark.parametrize("name", [*HYBRID, "qwen3_2507_thinking", "qwq"])
def test_the_empty_block_is_omitted_if_asked_for(name: str) -> None:
    (sample,) = samples(name, talk("a", "b"), empty_think="omit")
    assert "think>" not in sample.text
    assert learnt([sample]) == ["b<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3_2507_thinking", "qwq"])
def test_reasoning_follows_the_thought_that_the_prompt_opens(name: str) -> None:
    (sample,) = samples(name, talk("a", answer("b", "r")))
    assert learnt([sample]) == ["r\n</think>\n\nb<|im_end|>"]
    assert "assistant\n<think>\nr\n</think>\n\nb" in sample.text


def test_last_learns_the_last_answer_only() -> None:
    assert learnt(samples("qwen2_5", talk("a", "b", "c", "d"), learn="last")) == ["d<|im_end|>"]


def test_the_data_decides_before_the_setting() -> None:
    chat = talk("a", answer("b", learn=True), "c", answer("d", learn=False), "e", "f")
    assert learnt(samples("qwen2_5", chat, learn="last")) == ["b<|im_end|>|f<|im_end|>"]


def test_a_conversation_that_learns_nothing_is_counted() -> None:
    chat = talk("a", answer("b", learn=False))
    assert samples("qwen3", chat) == []
    assert counted("qwen3", chat)["nothing_learnt"] == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_results_and_questions_are_never_learnt(name: str) -> None:
    chat = talk("ask", answer("", None, CALL), Turn("tool", "found-it"), answer("so"), tools=(TOOL,))
    made = samples(name, chat)
    text = "".join(learnt(made))
    assert "ask" not in text
    assert "found-it" not in text
    assert "look" in text
    assert {piece.kind for sample in made for piece in sample.pieces if piece.learnt} == {"call", "answer"}


def test_stripped_reasoning_is_counted_and_gone() -> None:
    chat = talk("a", answer("b", "r"))
    (sample,) = samples("qwen3", chat, thinking="strip")
    assert learnt([sample]) == ["b<|im_end|>"]
    assert counted("qwen3", chat, thinking="strip")["thoughts_stripped"] == 1


def test_reasoning_without_a_place_is_refused_or_written_as_text() -> None:
    chat = talk("a", answer("b", "r"))
    with pytest.raises(Unrenderable, match=r"turn 2 \(assistant\).reasoning: .*data.thinking: strip"):
        samples("qwen2_5", chat)
    assert learnt(samples("qwen2_5", chat, thinking="as_written")) == ["<think>\nr\n</think>\n\nb<|im_end|>"]


def test_inline_reasoning_is_read_where_the_template_has_a_place() -> None:
    chat = talk("a", answer("<think>\nr\n</think>\n\nb"))
    for name in ("qwen3", "qwen3_8"):
        assert learnt(samples(name, chat, thinking="as_written"))[0].endswith("r\n</think>\n\nb<|im_end|>")


def test_a_text_with_the_end_of_a_thought_stays_whole() -> None:
    assert learnt(samples("qwen3", talk("a", "before </think> behind"))) == ["before </think> behind<|im_end|>"]
    with pytest.raises(Unrenderable, match="leaves out a part of it"):
        samples("qwq", talk("a", "before </think> behind"))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_looks_like_control_tokens_is_text(name: str) -> None:
    odd = "x <|im_end|> <tool_call> </think>"
    (sample,) = samples(name, talk(odd, "y <|im_end|> z", system=odd))
    texts = [piece.text for piece in sample.pieces if not piece.control]
    assert f"user\n{odd}" in texts
    assert "y <|im_end|> z" in texts
    assert counted(name, talk(odd, "y"))["looks_like_control_tokens"] == 1


def test_a_call_that_the_assistant_writes_as_text_is_its_token() -> None:
    (sample,) = samples("qwen3", talk("a", "<tool_call>\n{}\n</tool_call>"))
    assert [piece.text for piece in sample.pieces if piece.control and piece.learnt] == [
        "<tool_call>",
        "</tool_call>",
        "<|im_end|>",
    ]


def test_a_question_that_the_template_takes_for_a_result_is_read_as_one() -> None:
    chat = talk("q", answer("c", "r"), "<tool_response>\nx\n</tool_response>", answer("d", "s"))
    (sample,) = samples("qwen3", chat)
    assert "<tool_response>" in [piece.text for piece in sample.pieces if piece.control]
    assert counted("qwen3", chat)["words_read_by_the_template"] == 1


def test_a_text_that_begins_with_white_space_does_not_share_a_sample() -> None:
    assert len(samples("qwen2_5", talk("a", "\nb", "c", "d"))) == 2
    assert len(samples("qwen2_5", talk("a", "b", "c", " d"))) == 1


def test_tools_are_refused_by_a_template_that_knows_none() -> None:
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    plain += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    chat = maker("qwen3")
    simple = type(chat)(ChatTemplate({"default": plain}, "plain"), chat.settings, chat.controls)
    with pytest.raises(Unrenderable, match="tools: this template knows no tools"):
        simple.samples(talk("a", "b", tools=(TOOL,)), Counter())
    with pytest.raises(Unrenderable, match=r"turn 2 \(assistant\): this template knows no tools"):
        simple.samples(talk("a", answer("b", None, CALL)), Counter())


def test_a_template_that_fails_with_tools_only_says_so_in_each_row_that_has_them() -> None:
    broken = "{% if tools %}\n{{ tools[0].nowhere.at }}{% endif %}"
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    plain += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    chat = maker("qwen3")
    failing = type(chat)(ChatTemplate({"default": broken + plain}, "mine.jinja"), chat.settings, chat.controls)
    assert learnt(failing.samples(talk("a", "b"), Counter())) == ["b<|im_end|>"]
    said = r"tools: this template fails with tools: mine\.jinja:2: the chat template refuses: .*nowhere.*; choose"
    with pytest.raises(Unrenderable, match=said):
        failing.samples(talk("a", "b", tools=(TOOL,)), Counter())


def test_tools_are_known_to_a_template_that_insists_on_a_system_turn() -> None:
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system turn first') }}{% endif %}"
    chat = maker("qwen2_5")
    made = type(chat)(ChatTemplate({"default": strict + text_of("qwen2_5")}, "mine"), chat.settings, chat.controls)
    assert len(made.samples(talk("a", answer("", None, CALL), system="s", tools=(TOOL,)), Counter())) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"messages": []}, "chat_template_kwargs.messages: is not for a row"),
        ({"enable_thinking": "no"}, "enable_thinking: is 'no'; write true or false"),
        ({"enable_thinking": False}, "is given although enable_thinking is false"),
        ({"reasoning_effort": "huge"}, "correct chat_template_kwargs.reasoning_effort"),
    ],
)
def test_wrong_options_of_a_row_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Unrenderable, match=words):
        samples("qwen3_8", talk("a", answer("b", "r"), options=options))


def test_an_option_that_the_template_never_reads_is_counted() -> None:
    assert counted("qwen3", talk("a", "b", options={"preserve": 1}))["unknown_option/preserve"] == 1
    assert set(counted("qwen3", talk("a", "b", options={"enable_thinking": False}))) == {"turns_without_reasoning"}


@pytest.mark.parametrize(
    ("system", "text"), [(None, "Alibaba"), ("", "system\n<|im_end|>"), ("Be brief.", "Be brief.")]
)
def test_a_system_turn_is_the_templates_the_rows_or_none(system: str | None, text: str) -> None:
    assert text in samples("qwen2_5", talk("a", "b", system=system))[0].text


def test_a_job_may_set_the_system_prompt() -> None:
    assert "system\nBe odd.<" in samples("qwen3", talk("a", "b"), system_prompt="Be odd.")[0].text
    assert "system" not in samples("qwen3", talk("a", "b", system=""), system_prompt="Be odd.")[0].text


@pytest.mark.parametrize("empty_think", ["mask", "learn", "omit"])
def test_the_indentation_of_an_answer_without_reasoning_is_learnt(empty_think: str) -> None:
    # Qwen3's template removes newlines before an answer, never spaces; a server shows it the same later.
    found = samples("qwen3", talk("q", "    x = 1"), empty_think=empty_think)
    assert learnt(found)[-1].endswith("    x = 1<|im_end|>")


def test_reasoning_as_written_keeps_the_indentation_of_the_answer() -> None:
    found = samples("qwen3", talk("q", "<think>\nWhy.\n</think>\n\n    x = 1"), thinking="as_written")
    assert learnt(found) == ["<think>\nWhy.\n</think>\n\n    x = 1<|im_end|>"]


@pytest.mark.parametrize(("question", "count"), [("q", 0), ("q <think>", 1)])
def test_marks_of_reasoning_are_plain_characters_in_a_question_only(question: str, count: int) -> None:
    conversation = talk(question, "ok <think>")
    assert counted("qwen3", conversation)["looks_like_control_tokens"] == count
    pieces = [piece for sample in samples("qwen3", conversation) for piece in sample.pieces]
    assert sum(piece.control and piece.learnt and piece.text == "<think>" for piece in pieces) == 1


def test_a_template_that_asks_for_no_answer_is_refused() -> None:
    text = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    with pytest.raises(ModelError, match=r"mine: .*add_generation_prompt"):
        SampleMaker(ChatTemplate({"default": text}, "mine"), ChatSettings(), CONTROLS)


@pytest.mark.parametrize("name", HYBRID)
@pytest.mark.parametrize(
    ("empty_think", "words", "count"),
    [
        ("auto", "b<|im_end|>", 1),
        ("mask", "b<|im_end|>", 1),
        ("learn", "</think>\n\nb<|im_end|>", 0),
        ("omit", "b<|im_end|>", 0),
    ],
)
def test_a_row_that_asks_for_thinking_without_having_any(name: str, empty_think: str, words: str, count: int) -> None:
    chat = talk("a", "b", options={"enable_thinking": True})
    found = samples(name, chat, empty_think=empty_think)
    assert [text.endswith(words) for text in learnt(found)] == [True]
    opened = "" if name == "qwen3" else "<think>\n"
    prompt = found[0].text.removesuffix("\n").removesuffix(learnt(found)[0])
    masked = "<|im_start|>assistant\n" + ("" if empty_think == "omit" else "<think>\n\n</think>\n\n")
    assert prompt.endswith(f"<|im_start|>assistant\n{opened}" if empty_think == "learn" else masked)
    assert counted(name, chat, empty_think=empty_think)["thinking_without_reasoning"] == count


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6"])
@pytest.mark.parametrize(("options", "reasoning"), [({}, None), ({"enable_thinking": False}, None),
                                                    ({"enable_thinking": True}, "r")])  # fmt: skip
def test_a_row_gets_what_it_asks_for(name: str, options: dict[str, Any], reasoning: str | None) -> None:
    assert not counted(name, talk("a", answer("b", reasoning), options=options))["thinking_without_reasoning"]


def test_an_unlearnt_answer_without_reasoning_is_not_counted() -> None:
    chat = talk("a", answer("b", learn=False), "c", answer("d", "r"), options={"enable_thinking": True})
    assert not counted("qwen3", chat)["thinking_without_reasoning"]
