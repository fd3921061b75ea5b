"""What can be wrong with the tools of a conversation, with their calls and with their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.schemas import ToolSchemas
from qwen_job.text import did_you_mean

# rule -> (is it an error, what it means), as in rules.RULES.
TOOL_RULES: dict[str, tuple[bool, str]] = {
    "unknown_tool": (False, "a call of a tool that the row's tools do not include: no prompt shows it to the model"),
    "arguments": (False, "arguments of a call that do not fit the JSON Schema of the tool"),
    "tool_schema": (False, "a tool whose parameters are not a JSON Schema, or a tool given twice"),
    "call_without_result": (False, "a tool call within a conversation that no tool turn answers"),
    "result_without_call": (False, "a tool turn that answers no call"),
    "result_order": (False, "results in another order than their calls: chat templates show the order, not the IDs"),
}

_Finding = tuple[str, str, str]


def has_tools(conversation: Conversation) -> bool:
    """Tell whether a conversation has tools, calls or results."""
    return bool(conversation.tools) or any(turn.calls or turn.role == "tool" for turn in conversation.turns)


def tool_findings(conversation: Conversation, schemas: ToolSchemas) -> Iterator[_Finding]:
    """Yield (rule, field, message) for the tools, calls and results of a readable conversation."""
    functions: dict[str, Any] = {}
    for number, tool in enumerate(conversation.tools):
        function = tool.get("function", {})
        yield from _of_tool(function, number, functions, schemas)
        functions[str(function.get("name"))] = function
    for number, turn in enumerate(conversation.turns, 1):
        for place, call in enumerate(turn.calls):
            field = f"turn {number} ({turn.role}).calls[{place}]"
            yield from _of_call(call, field, functions, schemas)
    yield from _of_results(conversation.turns)


def _of_tool(
    function: Mapping[str, Any], number: int, before: Mapping[str, Any], schemas: ToolSchemas
) -> Iterator[_Finding]:
    name, field = str(function.get("name")), f"tools[{number}]"
    if name in before:
        yield "tool_schema", field, f"has the name {name!r} of another tool of the row; remove one of them"
    wrong = schemas.of_schema(function["parameters"]) if function.get("parameters") is not None else None
    if wrong:
        where = f"{field}.function.parameters{wrong.where}"
        yield "tool_schema", where, f"is not JSON Schema: {wrong.message}; servers may refuse the tool {name!r}"


def _of_call(call: ToolCall, field: str, functions: Mapping[str, Any], schemas: ToolSchemas) -> Iterator[_Finding]:
    if not functions:
        message = f"calls {call.name!r}, and the row has no tools; add them, so that the prompt shows them"
        yield "unknown_tool", field, message
    elif call.name not in functions:
        known = ", ".join(map(repr, functions)) if len(functions) <= 5 else f"{len(functions)} tools"
        message = f"calls {call.name!r}, and the row has {known}{did_you_mean(call.name, functions)}"
        yield "unknown_tool", field, message
    else:
        parameters = functions[call.name].get("parameters")
        wrong = schemas.of_arguments(parameters, call.arguments) if parameters is not None else None
        if wrong:
            message = f"{wrong.message}; correct the call of {call.name!r}, or the tool's parameters"
            yield "arguments", f"{field}.arguments{wrong.where}", message


def _of_results(turns: tuple[Turn, ...]) -> Iterator[_Finding]:
    """Compare each run of tool turns with the calls before it; calls at the end need no result."""
    caller, open_calls = 0, list[ToolCall]()
    for number, turn in enumerate(turns, 1):
        if turn.role == "tool":
            yield from _of_result(turn, f"turn {number} (tool)", open_calls)
            continue
        if open_calls:
            names = ", ".join(repr(call.name) for call in open_calls)
            message = f"calls {names}, and no tool turn answers before turn {number}; add the result or remove the call"
            yield "call_without_result", f"turn {caller} (assistant)", message
        caller, open_calls = number, list(turn.calls)


def _of_result(turn: Turn, field: str, open_calls: list[ToolCall]) -> Iterator[_Finding]:
    """Take the call that a result answers from ``open_calls``; by its ID, its name or else the order."""
    if not open_calls:
        yield "result_without_call", field, "answers no call of the assistant; add the call or remove the result"
        return
    place = _answered(turn, open_calls)
    if place is None:
        called = ", ".join(f"{call.name!r}{f' ({call.id})' if call.id else ''}" for call in open_calls)
        said = f"the ID {turn.call_id!r}" if turn.call_id else f"the name {turn.name!r}"
        yield "result_without_call", field, f"has {said}, and the calls that wait for a result are {called}"
        place = 0
    elif place:
        message = f"answers {open_calls[place].name!r} before {open_calls[0].name!r}; put the results in the order of "
        yield "result_order", field, message + "the calls"
    del open_calls[place]


def _answered(turn: Turn, calls: list[ToolCall]) -> int | None:
    """Return which of the calls a result answers, None if neither its ID nor its name fits any."""
    if turn.call_id and any(call.id for call in calls):
        return next((place for place, call in enumerate(calls) if call.id == turn.call_id), None)
    if turn.name:
        return next((place for place, call in enumerate(calls) if call.name == turn.name), None)
    return 0
