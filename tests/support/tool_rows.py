"""Conversations with tools and reasoning by the thousand, and every form in which data files have them.

Each form writes a conversation as a row; all of them read to the same conversation, apart from what a form cannot hold
(see ``FORMS``).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Conversation, ToolCall, Turn

Row = dict[str, Any]
_WORDS = [
    "Paris",
    "上海",
    "naïve",
    "a b",
    "<b>",
    "50 %",
    "🙂",
    "x\ny",
    '"quoted"',
    "C:\\dir",
    "<tool_call",
    "{",
    "tab\there",
]
_TYPES = ("string", "integer", "number", "boolean", "array", "object")


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Return ``count`` conversations, the same ones for the same ``seed``."""
    choose = random.Random(seed)
    return [_conversation(choose, number) for number in range(count)]


def _conversation(choose: random.Random, number: int) -> Conversation:
    tools = [_tool(choose, f"tool_{letter}") for letter in "abc"[: choose.randint(1, 3)]]
    reasons = choose.random() < 0.5
    turns: list[Turn] = []
    for _ in range(choose.randint(1, 3)):
        turns.append(Turn("user", _text(choose)))
        for _ in range(choose.randint(0, 2)):
            turns += _called(choose, tools, reasons)
        turns.append(Turn("assistant", _text(choose), _text(choose) if reasons else None))
    system = choose.choice([None, _text(choose)])
    return Conversation(f"row-{number}", system, tuple(turns), tools=tuple(tools))


def _called(choose: random.Random, tools: list[Row], reasons: bool) -> list[Turn]:
    called = [choose.choice(tools)["function"] for _ in range(choose.randint(1, 3))]
    calls = tuple(
        ToolCall(
            each["name"], {key: _value(choose, about["type"]) for key, about in _chosen(choose, each)}, f"call_{n}"
        )
        for n, each in enumerate(called)
    )
    text = choose.choice(["", _text(choose)])
    results = [Turn("tool", _text(choose), name=call.name, call_id=call.id) for call in calls]
    return [Turn("assistant", text, _text(choose) if reasons else None, calls), *results]


def _tool(choose: random.Random, name: str) -> Row:
    properties = {f"{name}_{letter}": {"type": choose.choice(_TYPES), "description": _text(choose)} for letter in "pqr"}
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": _text(choose), "parameters": parameters}}


def _chosen(choose: random.Random, function: Row) -> list[tuple[str, Row]]:
    properties = list(function["parameters"]["properties"].items())
    return properties[: choose.randint(1, len(properties))]


def _value(choose: random.Random, kind: str) -> Any:
    number = choose.randint(-9, 99)
    return {"string": _text(choose), "integer": number, "number": number / 8, "boolean": number > 40,
            "array": [_text(choose), number], "object": {"key": _text(choose)}}[kind]  # fmt: skip


def _text(choose: random.Random) -> str:
    return " ".join(choose.choice(_WORDS) for _ in range(choose.randint(1, 4)))


# --- forms ---


class Form(NamedTuple):
    """``write``: conversation -> row; ``ids``: whether the form has the IDs and names of calls in it."""

    write: Callable[[Conversation], Row]
    ids: bool


def without_ids(conversation: Conversation) -> Conversation:
    """Return a conversation without the IDs of calls and the names and IDs of results."""
    turns = [
        turn._replace(calls=tuple(call._replace(id="") for call in turn.calls), name="", call_id="")
        for turn in conversation.turns
    ]
    return conversation._replace(turns=tuple(turns))


def json_text(value: Any) -> str:
    """Return JSON as Python programs write it."""
    return json.dumps(value, ensure_ascii=False)


def _openai(
    conversation: Conversation, arguments: Callable[[Any], Any] = json_text, thought: str = "reasoning_content"
) -> Row:
    messages: list[Row] = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        message: Row = {"role": turn.role, "content": turn.text}
        if turn.role == "tool":
            message |= {"name": turn.name, "tool_call_id": turn.call_id}
        if turn.reasoning is not None:
            message[thought] = turn.reasoning
        if turn.calls:
            message["content"] = turn.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": arguments(call.arguments)},
                }
                for call in turn.calls
            ]
        messages.append(message)
    return {"id": conversation.id, "messages": messages, "tools": list(conversation.tools)}


def _same(value: Any) -> Any:
    return value


def _all_json(conversation: Conversation) -> Row:
    row = _openai(conversation)
    return {"id": row["id"], "messages": json_text(row["messages"]), "tools": json_text(row["tools"])}


def _developer(conversation: Conversation) -> Row:
    row = json.loads(json_text(_openai(conversation, _same, "thinking")))
    for message in row["messages"]:
        message["role"] = "developer" if message["role"] == "system" else message["role"]
        if message["role"] == "user":
            message["content"] = [{"type": "text", "text": message["content"]}]
    return {**row, "tools": [tool["function"] for tool in row["tools"]]}


def _thoughtful(turn: Turn) -> str:
    return turn.text if turn.reasoning is None else f"<think>\n{turn.reasoning}\n</think>\n\n{turn.text}"


def _roles(conversation: Conversation, keys: tuple[str, str], names: dict[str, str], together: bool) -> Row:
    """Write calls as turns with a role for themselves: all calls in one, or one turn each."""
    role, text = keys
    rows: list[Row] = []
    for turn in conversation.turns:
        calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
        if turn.text or turn.reasoning is not None or not calls:
            rows.append({role: names[turn.role], text: _thoughtful(turn)})
        written = [calls] if together and len(calls) > 1 else calls
        rows += [{role: names["call"], text: json_text(each)} for each in written]
    tools = json_text([tool["function"] for tool in conversation.tools])
    return {"id": conversation.id, "tools": tools, "system": conversation.system, "rows": rows}


def _swift(conversation: Conversation) -> Row:
    names = {"user": "user", "assistant": "assistant", "call": "tool_call", "tool": "tool_response"}
    row = _roles(conversation, ("role", "content"), names, together=False)
    return {"messages": row.pop("rows"), **row}


def _llama_factory(conversation: Conversation) -> Row:
    names = {"user": "human", "assistant": "gpt", "call": "function_call", "tool": "observation"}
    row = _roles(conversation, ("from", "value"), names, together=True)
    return {"conversations": row.pop("rows"), **row}


def _qwen_agent(conversation: Conversation) -> Row:
    messages: list[Row] = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    for turn in conversation.turns:
        if turn.role == "tool":
            messages.append({"role": "function", "name": turn.name, "content": turn.text})
            continue
        if turn.reasoning is not None:
            messages.append({"role": "assistant", "content": "", "reasoning_content": turn.reasoning})
        if turn.text or not turn.calls:
            messages.append({"role": turn.role, "content": turn.text})
        for call in turn.calls:
            made = {"name": call.name, "arguments": json_text(call.arguments)}
            messages.append({"role": "assistant", "content": "", "function_call": made})
    return {"id": conversation.id, "messages": messages, "functions": [tool["function"] for tool in conversation.tools]}


def _inline(conversation: Conversation) -> Row:
    """Write calls and results into the texts, as Qwen's templates do, results of parallel calls in one turn."""
    rows: list[Row] = [] if conversation.system is None else [{"from": "system", "value": conversation.system}]
    for turn in conversation.turns:
        calls = [json_text({"name": call.name, "arguments": call.arguments}) for call in turn.calls]
        blocks = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
        value = "\n".join([*([_thoughtful(turn)] if turn.text or turn.reasoning is not None else []), *blocks])
        name = {"user": "human", "assistant": "gpt", "tool": "tool"}[turn.role]
        if turn.role == "tool":
            value = f"<tool_response>\n{turn.text}\n</tool_response>"
            if rows[-1]["from"] == "tool":
                rows[-1]["value"] += f"\n{value}"
                continue
        rows.append({"from": name, "value": value})
    return {"id": conversation.id, "conversations": rows, "tools": list(conversation.tools)}


FORMS: dict[str, Form] = {
    "openai": Form(_openai, True),
    "openai, arguments as objects": Form(lambda each: _openai(each, _same, "reasoning"), True),
    "openai, all of it JSON": Form(_all_json, True),
    "openai, developer and parts": Form(_developer, True),
    "swift": Form(_swift, False),
    "llama-factory": Form(_llama_factory, False),
    "qwen-agent": Form(_qwen_agent, False),
    "inline": Form(_inline, False),
}
