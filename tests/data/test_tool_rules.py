"""What is found in tools, calls and results; good conversations give nothing."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.schemas import ToolSchemas
from qwen_job.data.tool_rules import has_tools, tool_findings

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str, parameters: Any = CITY) -> dict[str, Any]:
    """Return a tool in OpenAI's form."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def calls(*names: str, city: Any = "Paris", ids: bool = False) -> Turn:
    """Return an assistant's turn with a call for each name."""
    return Turn(
        "assistant", "", calls=tuple(ToolCall(name, {"city": city}, f"id-{name}" if ids else "") for name in names)
    )


ASK, ANSWER, RESULT = Turn("user", "Weather?"), Turn("assistant", "Rain."), Turn("tool", "11")
TOOLS = (tool("weather"), tool("time"))


def found(*turns: Turn, tools: tuple[Any, ...] = TOOLS) -> list[tuple[str, str]]:
    """Return (rule, field) of every finding."""
    conversation = Conversation("", None, turns, tools=tools)
    return [(rule, field) for rule, field, _ in tool_findings(conversation, ToolSchemas())]


@pytest.mark.parametrize(
    "turns",
    [
        (ASK, ANSWER),
        (ASK, calls("weather")),
        (ASK, calls("weather"), RESULT),
        (ASK, calls("weather"), RESULT, calls("time"), RESULT, ANSWER, ASK, ANSWER),
        (ASK, calls("weather", "weather"), RESULT, RESULT, ANSWER),
        (ASK, calls("weather", "time"), Turn("tool", "11", name="weather"), Turn("tool", "9", name="time"), ANSWER),
        (ASK, calls("weather", ids=True), Turn("tool", "11", call_id="id-weather"), ANSWER),
        (ASK, calls("weather"), Turn("tool", "11", call_id="made-up"), ANSWER),
    ],
)
def test_good_conversations_give_nothing(turns: tuple[Turn, ...]) -> None:
    assert found(*turns) == []


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ((ASK, calls("wether"), RESULT, ANSWER), [("unknown_tool", "turn 2 (assistant).calls[0]")]),
        ((ASK, calls("time", city=3)), [("arguments", "turn 2 (assistant).calls[0].arguments.city")]),
        ((ASK, calls("weather"), ANSWER), [("call_without_result", "turn 2 (assistant)")]),
        ((ASK, calls("weather", "time"), RESULT, ANSWER), [("call_without_result", "turn 2 (assistant)")]),
        ((ASK, RESULT, ANSWER), [("result_without_call", "turn 2 (tool)")]),
        ((ASK, calls("weather"), RESULT, RESULT, ANSWER), [("result_without_call", "turn 4 (tool)")]),
        ((ASK, calls("weather"), Turn("tool", "9", name="time"), ANSWER), [("result_without_call", "turn 3 (tool)")]),
        (
            (ASK, calls("weather", ids=True), Turn("tool", "9", call_id="id-9"), ANSWER),
            [("result_without_call", "turn 3 (tool)")],
        ),
        (
            (ASK, calls("weather", "time"), Turn("tool", "9", name="time"), Turn("tool", "11", name="weather"), ANSWER),
            [("result_order", "turn 3 (tool)")],
        ),
    ],
)
def test_bad_calls_and_results_are_found(turns: tuple[Turn, ...], expected: list[tuple[str, str]]) -> None:
    assert found(*turns) == expected


def test_bad_tools_are_found() -> None:
    twice = (tool("weather"), tool("weather"))
    assert found(ASK, ANSWER, tools=twice) == [("tool_schema", "tools[1]")]
    wrong = (tool("weather", {"properties": {"city": {"type": "str"}}}),)
    assert found(ASK, calls("weather", city=3), tools=wrong) == [
        ("tool_schema", "tools[0].function.parameters.properties.city.type")
    ]
    assert found(ASK, calls("clock", city=3), tools=(tool("clock", None),)) == []


def test_calls_without_any_tools_say_what_to_add() -> None:
    conversation = Conversation("", None, (ASK, calls("weather")))
    [(rule, _, message)] = tool_findings(conversation, ToolSchemas())
    assert rule == "unknown_tool" and "the row has no tools; add them" in message


def test_a_misspelt_tool_gets_a_suggestion() -> None:
    conversation = Conversation("", None, (ASK, calls("wether")), tools=TOOLS)
    [(_, _, message)] = tool_findings(conversation, ToolSchemas())
    assert "did you mean 'weather'?" in message and "'weather', 'time'" in message


def test_plain_conversations_are_told_apart() -> None:
    assert not has_tools(Conversation("", None, (ASK, ANSWER)))
    assert has_tools(Conversation("", None, (ASK, ANSWER), tools=TOOLS))
    assert has_tools(Conversation("", None, (ASK, calls("weather")))) and has_tools(
        Conversation("", None, (ASK, RESULT))
    )
