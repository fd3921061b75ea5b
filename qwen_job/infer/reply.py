"""Read what a model writes as a server does: its reasoning, its text and its calls of tools.

    <think>\\nreasoning\\n</think>\\n\\ntext\\n<tool_call>\\n...\\n</tool_call>

- ``Reply``: a whole answer, taken apart
- ``ReplyReader``: the same while it is being generated, for a terminal
- ``read_calls``: the calls in both forms that Qwen models write:

      {"name": "get_weather", "arguments": {"city": "Paris"}}                                Qwen2.5, Qwen3
      <function=get_weather>\\n<parameter=city>\\nParis\\n</parameter>\\n</function>             Qwen3-Coder, Qwen3.5
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_job.chat.conversation import ToolCall
from qwen_job.strict_json import loads
from qwen_job.text import visible

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"<function=([^>\n]+)>\n?(.*?)\n?</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)
# What Qwen3.5's template writes for these values; others are JSON.
_PYTHON = {"True": True, "False": False, "None": None}


class Reply(NamedTuple):
    """An answer taken apart.

    Attributes:
        reasoning: the thoughts before the text; None where the model did not open any.
        text: the text, without the calls behind it.
        calls: the calls of tools, in order.
        problems: why a call could not be read; it is then part of ``text``, as a server would leave it.
        cut: it ended inside its reasoning.
    """

    reasoning: str | None
    text: str
    calls: tuple[ToolCall, ...] = ()
    problems: tuple[str, ...] = ()
    cut: bool = False


class Piece(NamedTuple):
    """Some more text to show; ``reasoning`` tells which part of the answer it belongs to."""

    text: str
    reasoning: bool = False


class ReplyReader:
    """Takes an answer apart piece by piece.

    ``opened``: the prompt ends inside ``<think>``. ``thinking``: the model's template knows reasoning; without it
    ``<think>`` is text. ``tools``: those the model may call; without any, a call is text, too.
    """

    def __init__(
        self, *, opened: bool = False, thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._tools = tools
        self._reasoning: list[str] | None = [] if opened else None
        self._text: list[str] = []
        self._block, self._rest = "", ""
        self._calls, self._problems = tuple[ToolCall, ...](), tuple[str, ...]()
        self._part = "reasoning" if opened else ("start" if thinking else "text")

    def add(self, piece: str) -> Iterator[Piece]:
        """Yield what to show; what may be the beginning of a mark is held back."""
        self._rest += piece
        yield from self._advance(last=False)

    def end(self) -> Iterator[Piece]:
        """Yield what was held back, and calls that cannot be read."""
        yield from self._finish()

    def reply(self) -> Reply:
        """Return the answer as far as it came."""
        self._finish()
        reasoning = None if self._reasoning is None else "".join(self._reasoning).strip("\n")
        text = "".join(self._text)
        return Reply(
            reasoning,
            text.rstrip("\n") if self._calls else text,
            self._calls,
            self._problems,
            self._part == "reasoning",
        )

    def _finish(self) -> list[Piece]:
        pieces = list(self._advance(last=True))
        if self._block:
            try:
                self._calls = read_calls(self._block, self._tools)
            except ValueError as error:
                pieces.append(Piece(self._block))
                self._text.append(self._block)
                self._problems = (str(error),)
            self._block = ""
        return pieces

    def _advance(self, last: bool) -> Iterator[Piece]:
        if self._part == "start" and not self._starts(last):
            return
        if self._part == "reasoning":
            yield from self._think(last)
        if self._part == "after" and self._rest.lstrip("\n"):
            self._rest, self._part = self._rest.lstrip("\n"), "text"
        if self._part == "text":
            yield from self._say(last)
        if self._part == "calls":
            self._block, self._rest = self._block + self._rest, ""

    def _starts(self, last: bool) -> bool:
        """Tell whether it is decided if the answer opens with ``<think>``."""
        begun = self._rest.lstrip()
        if begun.startswith(THINK):
            self._reasoning, self._rest, self._part = [], begun[len(THINK) :], "reasoning"
        elif last or not THINK.startswith(begun):
            self._part = "text"
        return self._part != "start"

    def _think(self, last: bool) -> Iterator[Piece]:
        before, found, after = self._rest.partition(END_THINK)
        shown = before if found or last else before[: len(before) - _overlap(before, END_THINK)]
        self._rest = after if found else self._rest[len(shown) :]
        self._part = "after" if found else self._part
        assert self._reasoning is not None
        if shown:
            self._reasoning.append(shown)
            yield Piece(shown, reasoning=True)

    def _say(self, last: bool) -> Iterator[Piece]:
        mark = CALL if self._tools else ""
        at = self._rest.find(mark) if mark else -1
        if at >= 0:
            shown, self._rest, self._part = self._rest[:at], self._rest[at:], "calls"
        else:
            kept = 0 if last or not mark else _overlap(self._rest, mark)
            shown, self._rest = self._rest[: len(self._rest) - kept], self._rest[len(self._rest) - kept :]
        if shown:
            self._text.append(shown)
            yield Piece(shown)


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``mark``."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-size:])), 0)


def read_reply(
    text: str, *, opened: bool = False, thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()
) -> Reply:
    """Take a whole answer apart; the arguments are those of :class:`ReplyReader`."""
    reader = ReplyReader(opened=opened, thinking=thinking, tools=tools)
    for _ in reader.add(text):
        pass
    for _ in reader.end():
        pass
    return reader.reply()


def read_calls(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[ToolCall, ...]:
    """Read one ``<tool_call>`` block after the other; ``tools`` tell the types of XML parameters.

    Raises:
        ValueError: a block is neither form; the message says what is wrong.
    """
    calls = []
    while text := text.strip():
        if not text.startswith(CALL):
            raise ValueError(f"there is text after a tool call: {visible(text, 60)}")
        body, _, text = text[len(CALL) :].partition(END_CALL)
        calls.append(_json_call(body.strip()) if body.lstrip().startswith("{") else _xml_call(body.strip(), tools))
    return tuple(calls)


def _json_call(body: str) -> ToolCall:
    try:
        call = loads(body)
    except ValueError as error:
        raise ValueError(f"a tool call {error}: {visible(body, 80)}") from None
    name, arguments = call.get("name"), call.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"a tool call has no name or no object of arguments: {visible(body, 80)}")
    return ToolCall(name, arguments)


def _xml_call(body: str, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    found = _FUNCTION.fullmatch(body)
    if not found:
        raise ValueError(f"a tool call is neither JSON nor <function=...>: {visible(body, 80)}")
    name, inner = found[1].strip(), found[2]
    types = _types(name, tools)
    values = {key.strip(): _unwrapped(value) for key, value in _PARAMETER.findall(inner)}
    return ToolCall(name, {key: _value(text, types.get(key)) for key, text in values.items()})


def _unwrapped(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")


def _value(text: str, kind: object) -> Any:
    """Return a parameter's value: a string unless the tool's schema asks for another type."""
    if kind in (None, "string") or (isinstance(kind, list) and "string" in kind):
        return text
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return loads(text)
    except ValueError:
        return text


def _types(name: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Return {parameter: its JSON schema's type} of the tool ``name``."""
    for tool in tools:
        function = tool.get("function", {})
        if function.get("name") == name:
            schema = function.get("parameters")
            properties = schema.get("properties") if isinstance(schema, Mapping) else None
            fields = properties.items() if isinstance(properties, Mapping) else ()
            return {key: field.get("type") for key, field in fields if isinstance(field, Mapping)}
    return {}
