"""What a model writes is taken apart as a server does it, however it arrives."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.chat.conversation import ToolCall
from qwen_job.infer.reply import Reply, ReplyReader, read_calls, read_reply

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "hourly": {"type": "boolean"},
                "units": {"type": ["string", "null"]},
                "places": {"type": "array"},
            },
        },
    },
}
JSON_CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
PARIS = ToolCall("get_weather", {"city": "Paris", "days": 2})
THINKS: dict[str, Any] = {"thinking": True, "tools": [WEATHER]}


@pytest.mark.parametrize(
    ("text", "how", "wanted"),
    [
        ("Hello.\n", {}, Reply(None, "Hello.\n")),
        ("", {}, Reply(None, "")),
        ("<think>\nhm\n</think>\n\nHello.", {"thinking": True}, Reply("hm", "Hello.")),
        ("\n<think>\nhm\n</think>\n\nHello.", {"thinking": True}, Reply("hm", "Hello.")),
        ("<think>\n\n</think>\n\nHello.", {"thinking": True}, Reply("", "Hello.")),
        ("hm\n</think>\n\nHello.", {"thinking": True, "opened": True}, Reply("hm", "Hello.")),
        ("cut in the mid", {"thinking": True, "opened": True}, Reply("cut in the mid", "", cut=True)),
        ("<think>\ncut </thi", {"thinking": True}, Reply("cut </thi", "", cut=True)),
        ("<think> is a tag", {}, Reply(None, "<think> is a tag")),
        ("a <think>\nb</think>", {"thinking": True}, Reply(None, "a <think>\nb</think>")),
        ("<thi", {"thinking": True}, Reply(None, "<thi")),
        (JSON_CALL, {}, Reply(None, JSON_CALL)),
        (JSON_CALL, THINKS, Reply(None, "", (PARIS,))),
        (f"Let me look.\n{JSON_CALL}", THINKS, Reply(None, "Let me look.", (PARIS,))),
        (f"<think>\nhm\n</think>\n\n{XML_CALL}", THINKS, Reply("hm", "", (PARIS,))),
        (
            f"hm\n</think>\n\nYes.\n\n{XML_CALL}\n{JSON_CALL}",
            {**THINKS, "opened": True},
            Reply("hm", "Yes.", (PARIS,) * 2),
        ),
        (JSON_CALL.removesuffix("</tool_call>"), THINKS, Reply(None, "", (PARIS,))),
        ("a < b <tool_cal", THINKS, Reply(None, "a < b <tool_cal")),
    ],
)
def test_an_answer_is_taken_apart_however_it_arrives(text: str, how: dict[str, Any], wanted: Reply) -> None:
    assert read_reply(text, **how) == wanted
    for size in (1, 2, 3, 7):
        reader = ReplyReader(**how)
        shown = [piece for at in range(0, len(text), size) for piece in reader.add(text[at : at + size])]
        shown += reader.end()
        assert reader.reply() == wanted
        said = "".join(piece.text for piece in shown if not piece.reasoning)
        assert said.rstrip("\n") == wanted.text.rstrip("\n")
        assert "".join(piece.text for piece in shown if piece.reasoning).strip("\n") == (wanted.reasoning or "")


def test_text_is_shown_as_soon_as_it_cannot_be_a_mark() -> None:
    reader = ReplyReader(thinking=True, tools=[WEATHER])
    assert [list(reader.add(piece)) for piece in ("<th", "ink>a", "b</", "think>\n", "\nc <", "b")] == [
        [], [("a", True)], [("b", True)], [], [("c ", False)], [("<b", False)],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("inner", "wanted"),
    [
        ("", {}),
        ("<parameter=city>\n2\n</parameter>", {"city": "2"}),
        ("<parameter=city>\n\nParis\n\n</parameter>", {"city": "\nParis\n"}),
        (
            "<parameter=hourly>\nTrue\n</parameter>\n<parameter=days>\nmany\n</parameter>",
            {"hourly": True, "days": "many"},
        ),
        (
            "<parameter=hourly>\nfalse\n</parameter>\n<parameter=units>\nnull\n</parameter>",
            {"hourly": False, "units": "null"},
        ),
        ('<parameter=places>\n["a", {"b": 1}]\n</parameter>', {"places": ["a", {"b": 1}]}),
        ("<parameter=unknown>\n3\n</parameter>", {"unknown": "3"}),
        ("<parameter=city>\n</function>\n</parameter>", {"city": "</function>"}),
    ],
)
def test_xml_parameters_have_the_types_of_the_tools_schema(inner: str, wanted: dict[str, Any]) -> None:
    text = f"<tool_call>\n<function=get_weather>\n{inner}\n</function>\n</tool_call>"
    assert read_calls(text, [WEATHER]) == (ToolCall("get_weather", wanted),)


def test_arguments_in_a_string_are_read() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert read_calls(text) == (ToolCall("f", {"a": 1}),)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "f", "arguments": {"a": ', "is not JSON"),
        ('{"arguments": {}}', "has no name"),
        ('{"name": "f", "arguments": [1]}', "no object of arguments"),
        ('{"name": "f", "arguments": "x"}', "no object of arguments"),
        ("f(1)", "is neither JSON nor"),
        ("<function=f>\n", "is neither JSON nor"),
        ("{" * 200, "nested too deeply"),
        ("", "is neither JSON nor"),
    ],
)
def test_a_call_that_cannot_be_read_stays_text_and_says_why(body: str, problem: str) -> None:
    text = f"So:\n<tool_call>\n{body}\n</tool_call>"
    reply = read_reply(text, tools=[WEATHER])
    assert (reply.text, reply.calls) == (text, ())
    assert problem in reply.problems[0]


def test_text_after_a_call_is_a_problem() -> None:
    reply = read_reply(f"{JSON_CALL}\nand more", tools=[WEATHER])
    assert reply.text == f"{JSON_CALL}\nand more" and "text after a tool call: and more" in reply.problems[0]
