"""A conversation as the messages that a chat template takes, with what only looks like control tokens marked.

A spelling of a control token in somebody's text gets a mark after its first character, a character for private use that
occurs nowhere in the conversation. After rendering, only unmarked spellings are control tokens; the marks are removed.

What a control token of the frame is (``<|im_end|>``) is marked everywhere. A word of the template that is one token
(``<think>``, ``<tool_call>``) is marked everywhere but in the text of the assistant: there it is what the model emits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.chat.template import Unrenderable

_MARKS = tuple(map(chr, range(0xF0000, 0xF0010)))
Mark = Callable[[str], str]


class Controls(NamedTuple):
    """The control tokens of a tokenizer: those of the ``frame``, and other ``words`` that the template writes."""

    frame: tuple[str, ...]
    words: tuple[str, ...] = ()

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches each of them, the longest first."""
        return alternatives((*self.frame, *self.words))


class Messages(NamedTuple):
    """What a template takes. ``mark`` is the character in lookalikes, empty if there are none."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    options: Mapping[str, Any]
    mark: str = ""


def alternatives(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches each of ``words``, the longest first; none: it never matches."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


def plain_messages(conversation: Conversation, system: str | None) -> Messages:
    """Return the messages of a conversation as a client would send them to a server."""
    return _messages(conversation, system, _same, _same, "")


def marked_messages(conversation: Conversation, system: str | None, controls: Controls, words: bool = True) -> Messages:
    """Return the messages with all lookalikes marked; with ``words`` false, only those of the frame's tokens.

    Raises:
        Unrenderable: all the characters that could be marks occur in the conversation.
    """
    strict = controls.pattern if words else alternatives(controls.frame)
    # Most conversations hold no such spelling: found before anything is copied.
    texts = list(strings_of(conversation, system))
    if not any("<" in text and strict.search(text) for text in texts):
        return plain_messages(conversation, system)
    mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise Unrenderable("row", "uses all private characters from U+F0000 to U+F000F; remove one of them")
    loose = alternatives(controls.frame)
    return _messages(conversation, system, _marker(strict, mark), _marker(loose, mark), mark)


def strings_of(conversation: Conversation, system: str | None) -> Iterable[str]:
    """Yield every text of a conversation, those inside tools, calls and options too."""
    yield system or ""
    for turn in conversation.turns:
        yield turn.text
        if turn.reasoning:
            yield turn.reasoning
        for call in turn.calls:
            yield call.name
            yield from _inside(call.arguments)
        if turn.name:
            yield turn.name
    yield from _inside(conversation.tools)
    yield from _inside(conversation.options)


def _inside(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _inside(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _inside(item)


def _same(text: str) -> str:
    return text


def _marker(pattern: re.Pattern[str], mark: str) -> Mark:
    def replace(found: re.Match[str]) -> str:
        return found[0][0] + mark + found[0][1:]

    return lambda text: pattern.sub(replace, text) if "<" in text else text


def _messages(conversation: Conversation, system: str | None, strict: Mark, loose: Mark, mark: str) -> Messages:
    messages = [] if system is None else [{"role": "system", "content": strict(system)}]
    messages += [_message(turn, strict, loose) for turn in conversation.turns]
    tools = [_copy(tool, strict) for tool in conversation.tools] or None
    return Messages(messages, tools, _copy(conversation.options, strict), mark)


def _message(turn: Turn, strict: Mark, loose: Mark) -> dict[str, Any]:
    if turn.role == "tool":
        message: dict[str, Any] = {"role": "tool", "content": strict(turn.text)}
        return message | ({"name": strict(turn.name)} if turn.name else {}) | _with_id("tool_call_id", turn.call_id)
    if turn.role != "assistant":
        return {"role": turn.role, "content": strict(turn.text)}
    message = {"role": "assistant", "content": loose(turn.text)}
    if turn.reasoning is not None:
        message["reasoning_content"] = strict(turn.reasoning)
    elif "</think>" in turn.text:
        message["reasoning_content"] = ""  # else a template may take part of the text as reasoning
    if turn.calls:
        message["tool_calls"] = [_call(call, strict) for call in turn.calls]
    return message


def _call(call: ToolCall, strict: Mark) -> dict[str, Any]:
    function = {"name": strict(call.name), "arguments": _copy(call.arguments, strict)}
    return {"type": "function", "function": function} | _with_id("id", call.id)


def _with_id(key: str, value: str) -> dict[str, str]:
    return {key: value} if value else {}


def _copy(value: Any, mark: Mark) -> Any:
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, Mapping):
        return {mark(key) if isinstance(key, str) else key: _copy(item, mark) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item, mark) for item in value]
    return value
