"""Read a value of a row: a text, or JSON inside a string. Errors name the field and what was found there."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from qwen_job.chat.conversation import JsonObject
from qwen_job.data.keys import MAX_DEPTH, RecordError, refuse_depth, unused_keys
from qwen_job.text import visible

_NONE: frozenset[str] = frozenset()
_PART_KEYS = frozenset({"type", "text"})
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true/false",
    type(None): "missing or null",
}
# Parts of Anthropic's API.
_INSTEAD = {
    "tool_use": "write the call as tool_calls of the turn",
    "tool_result": "write the result as a turn with the role tool",
    "thinking": "write it as reasoning_content of the turn",
}


class RepeatedKey(ValueError):
    """An object has the same key more than once; all but one of its values would be lost."""

    def __init__(self, key: str) -> None:
        super().__init__(f"has the key '{visible(key, 40)}' more than once in one object; keep one of them")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. By default, Python keeps the last of equal keys and drops the others.

    Raises:
        RepeatedKey: two keys are equal.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RepeatedKey(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return made


def kind(value: object) -> str:
    """Name the JSON type of a value for an error message."""
    return _KINDS.get(type(value), "a number")


def short(value: object) -> str:
    """Return a value as Python writes it, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_list(value: Any) -> bool:
    """Tell whether a value is a list, or the tuple that Arrow makes of one."""
    return isinstance(value, (list, tuple))


def text_of(value: object, field: str, ignored: frozenset[str] = _NONE) -> str:
    """Return a text that is a string or a list of text parts, which are joined.

    Raises:
        RecordError: it is anything else, or a part has content besides its text.
    """
    if isinstance(value, str):
        return value
    if not (isinstance(value, list) and value):
        raise RecordError(field, f"is {kind(value)}; write a string")
    for number, part in enumerate(value):
        part_type = part.get("type", "text") if isinstance(part, dict) else ""
        if part_type != "text":
            refuse_depth(part_type, field)
            what = f"a part of type {short(part_type)}" if isinstance(part, dict) else f"{kind(part)} in a list"
            instead = _INSTEAD.get(part_type, "write a string") if isinstance(part_type, str) else "write a string"
            raise RecordError(field, f"holds {what}, and only text is trained; {instead}")
        if not isinstance(part.get("text"), str):
            raise RecordError(field, f"holds a part whose text is {kind(part.get('text'))}; write a string")
        if len(part) > 1:
            unused_keys(part, _PART_KEYS, ignored, where=f"{field}[{number}].", role="user")
    return "".join(part["text"] for part in value)


def from_json(text: str, field: str, expected: str) -> Any:
    """Parse JSON that a string holds; ``expected`` says in an error what to write instead.

    Raises:
        RecordError: it is not JSON, has a key twice, a number that is not finite, or is nested too deeply.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise RecordError(field, "is nested too deeply; write it flatter") from None
    except RepeatedKey as error:
        raise RecordError(field, str(error)) from None
    except ValueError as error:
        raise RecordError(field, f"is {short(text)}, which is not JSON ({error}); write {expected}") from None
    if _may_be_deep(text):
        refuse_depth(value, field)
    return value


def json_object(value: dict[str, Any], field: str) -> JsonObject:
    """Return an object with its JSON.

    Raises:
        RecordError: it is nested too deeply, or has NaN or infinity in it.
    """
    try:
        made = JsonObject(value)
    except RecursionError:
        refuse_depth(value, field)
        raise
    # The text tells most of what a walk would; only a few values need one.
    if _may_be_deep(made.text):
        refuse_depth(value, field)
    if "NaN" in made.text or "Infinity" in made.text:
        refuse_not_finite(value, field)
    return made


def _may_be_deep(text: str) -> bool:
    return text.count("{") + text.count("[") >= MAX_DEPTH


def refuse_not_finite(value: object, field: str) -> None:
    """Refuse a value with NaN or infinity in it, which JSON does not have. It must not be nested too deeply.

    Raises:
        RecordError: it has one.
    """
    level = [value]
    while level:
        part = level.pop()
        if isinstance(part, dict):
            level += part.values()
        elif is_list(part):
            assert isinstance(part, (list, tuple))
            level += part
        elif isinstance(part, float) and not math.isfinite(part):
            raise RecordError(field, "holds a number that is not finite; write a number, null or a string")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is larger than a number can be here")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=_finite, parse_constant=_constant)
