"""What every reader of data returns and every renderer takes: a conversation, its turns, and calls of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False)


class JsonObject(dict[str, Any]):
    """A JSON object with its ``text``, which several steps need; nothing in it may be changed.

    Raises:
        RecursionError: it is nested without end.
    """

    __slots__ = ("text",)

    def __init__(self, value: Mapping[str, Any]) -> None:
        super().__init__(value)
        self.text = _ENCODER.encode(value)


def json_text(value: Any) -> str:
    """Return a value as JSON, characters as they are."""
    return value.text if type(value) is JsonObject else _ENCODER.encode(value)


class ToolCall(NamedTuple):
    """One call of a tool by the assistant. ``arguments`` is parsed, also where the data holds a JSON string."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


class Turn(NamedTuple):
    """One turn of a conversation. Consecutive tool turns answer the calls of the assistant turn before them.

    Attributes:
        role: user, assistant or tool; system only for a system turn behind the first turn.
        text: its words; empty is right where there is reasoning or a call.
        reasoning: the assistant's thoughts before its text; None: the data has none.
        calls: the tools that the assistant calls after its text.
        learn: whether the data wants this turn learnt; None: the data does not say.
        name: the tool whose result a tool turn is.
        call_id: the ID of the call that a tool turn answers.
    """

    role: str
    text: str
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    learn: bool | None = None
    name: str = ""
    call_id: str = ""


class Conversation(NamedTuple):
    """A system prompt and turns in order.

    Attributes:
        id: the row's own name, empty if it has none.
        system: None: the data has none; empty: the data asks for none.
        turns: at least one.
        unused: keys of the row and its turns that training ignores.
        tools: the tools that may be called, each {"type": "function", "function": {...}} as OpenAI's API has it.
        options: the row's own arguments for the chat template, ``enable_thinking`` among them.
    """

    id: str
    system: str | None
    turns: tuple[Turn, ...]
    unused: tuple[str, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = {}


# All that a turn of a plain conversation has beside its role and text.
_PLAIN = Turn("", "")[2:]


def is_plain(conversation: Conversation) -> bool:
    """Tell whether a conversation has nothing but texts of the system, the user and the assistant."""
    if conversation.tools or conversation.options:
        return False
    # A generator takes twice as long.
    return not [turn for turn in conversation.turns if turn[2:] != _PLAIN or turn[0] == "tool"]
