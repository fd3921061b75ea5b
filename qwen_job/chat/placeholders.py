"""Conversations of one structure: what they have in common as a key, what differs as values, and placeholders for it.

A key holds the roles, which turns have text, reasoning and calls, the options, and the kinds of arguments. A value is a
text that the template only copies (it may trim white space at its ends, so that is part of the key), or the JSON of a
tool or of arguments. Where a template reads tools or arguments itself, they are taken apart more finely: see LEVELS.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Conversation, ToolCall, Turn, json_text

# 0: tools and arguments as JSON; 1: arguments by their keys and kinds; 2: tools as part of the key as well.
LEVELS = 3
_NUMBER = 7_160_000_000_000
_MOST_WHITE_SPACE = 8
_MOST_ARGUMENTS = 64
# What a template makes of a placeholder: as it is, inside JSON, or as the JSON of a value of each kind.
SLOT = re.compile(
    '\\{"\ue000(?P<mapping>\\d+)\\\\"\ue001": null\\}'
    '|\\["\ue000(?P<list>\\d+)\\\\"\ue001"\\]'
    '|"\ue000(?P<json>\\d+)\\\\"\ue001"'
    '|\ue000(?P<raw>\\d+)"\ue001'
    "|716(?P<number>\\d{10})(?:\\.5)?"
)


class Odd(Exception):
    """A conversation that has to be rendered itself: its text may mean something to the template."""


class Outlined(NamedTuple):
    """The structure of a conversation, and what differs from others of the same: one value for each placeholder."""

    key: tuple[object, ...]
    values: list[str]


class Structure:
    """Reads conversations at a level, and makes the conversation of placeholders for a key's.

    ``odd`` matches what must not be in a value. Kinds by placeholder: text, json, mapping, list or number.
    """

    def __init__(self, odd: re.Pattern[str], level: int) -> None:
        self._odd, self._level = odd, level

    def outlined(self, conversation: Conversation) -> Outlined:
        """Return the structure of a conversation.

        Raises:
            Odd: it has no structure that others could share.
        """
        key: list[object] = [self._level]
        values: list[str] = []
        if conversation.options:
            key.append(json.dumps(conversation.options, sort_keys=True))
        if conversation.system is not None:
            key.append("system")
            self._text(conversation.system, key, values)
        for turn in conversation.turns:
            role, text, reasoning, calls, learn, name, call_id = turn
            key += role, learn
            if text and "<" not in text and not text[0].isspace() and not text[-1].isspace():
                key.append(True)
                values.append(text)
            else:
                self._text(text, key, values)
            if reasoning is not None:
                key.append("reasoning")
                self._text(reasoning, key, values)
            if calls or name or call_id:
                self._rest(turn, key, values)
        for tool in conversation.tools:
            key.append("tool")
            self._tool(tool, key, values)
        return Outlined(tuple(key), values)

    def _text(self, text: str, key: list[object], values: list[str]) -> None:
        if not text:
            key.append(None)
            return
        if "<" in text and self._odd.search(text):
            raise Odd
        if text[0].isspace() or text[-1].isspace():
            core = text.strip()
            before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
            if not core or len(before) + len(after) > _MOST_WHITE_SPACE:
                raise Odd
            key.append((before, after))
            values.append(core)
        else:
            key.append(True)
            values.append(text)

    def _rest(self, turn: Turn, key: list[object], values: list[str]) -> None:
        for text in (turn.name, turn.call_id):
            self._text(text, key, values)
        for call in turn.calls:
            key.append("call")
            for text in (call.name, call.id):
                self._text(text, key, values)
            if not call.arguments or not self._level:
                self._json(call.arguments, key, values)
                continue
            if len(call.arguments) > _MOST_ARGUMENTS:
                raise Odd
            for name, value in call.arguments.items():
                self._text(name, key, values)
                self._value(value, key, values)

    def _value(self, value: Any, key: list[object], values: list[str]) -> None:
        if isinstance(value, str):
            self._text(value, key, values)
        elif not value or value is True:
            key.append(repr(value))
        elif isinstance(value, (int, float)):
            if not math.isfinite(value):
                raise Odd
            key.append(type(value).__name__)
            values.append(repr(value))
        else:
            self._json(value, key, values)

    def _json(self, value: Any, key: list[object], values: list[str]) -> None:
        if not value:
            key.append(repr(value))
            return
        text = json_text(value)
        if "<" in text and self._odd.search(text):
            raise Odd
        key.append("mapping" if isinstance(value, Mapping) else "list")
        values.append(text)

    def _tool(self, tool: Mapping[str, Any], key: list[object], values: list[str]) -> None:
        if self._level < 2:
            self._json(tool, key, values)
        else:
            key.append(json.dumps(tool))

    def placeholders(self, conversation: Conversation) -> tuple[Conversation, list[str]]:
        """Return the conversation with placeholders for its values, and the kind of each."""
        return _Replacer(self._level).conversation(conversation)


class _Replacer:
    """Walks a conversation as :meth:`Structure.outlined` does."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._kinds: list[str] = []

    def conversation(self, found: Conversation) -> tuple[Conversation, list[str]]:
        system = found.system if found.system is None else self._text(found.system)
        turns = tuple(map(self._turn, found.turns))
        tools: tuple[Any, ...] = found.tools if self._level > 1 else tuple(self._json(tool) for tool in found.tools)
        return found._replace(system=system, turns=turns, tools=tools), self._kinds

    def _new(self, kind: str) -> str:
        self._kinds.append(kind)
        return f'\ue000{len(self._kinds) - 1}"\ue001'

    def _text(self, text: str) -> str:
        core = text.strip()
        return text.replace(core, self._new("text"), 1) if core else text

    def _turn(self, turn: Turn) -> Turn:
        text = self._text(turn.text)
        reasoning = turn.reasoning if turn.reasoning is None else self._text(turn.reasoning)
        name, call_id = self._text(turn.name), self._text(turn.call_id)
        return turn._replace(
            text=text, reasoning=reasoning, name=name, call_id=call_id, calls=tuple(map(self._call, turn.calls))
        )

    def _call(self, call: ToolCall) -> ToolCall:
        name, number = self._text(call.name), self._text(call.id)
        arguments: Any = call.arguments
        if arguments:
            arguments = dict(self._pairs(arguments)) if self._level else self._json(arguments)
        return ToolCall(name, arguments, number)

    def _pairs(self, arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        for name, value in arguments.items():
            yield self._text(name), self._value(value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if not value or value is True:
            return value
        if isinstance(value, (int, float)):
            number = _NUMBER + len(self._kinds)
            self._kinds.append("number")
            return number if isinstance(value, int) else number + 0.5
        return {self._new("mapping"): None} if isinstance(value, Mapping) else [self._new("list")]

    def _json(self, value: Any) -> Any:
        return self._new("json") if value else value
