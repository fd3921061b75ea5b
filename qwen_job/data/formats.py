"""One row of a user's file -> one Conversation.

reference       {"id": ..., "conversations": [{"from": "user", "value": ...}, {"from": "assistant", ...}]}
sharegpt        the same with "human" and "gpt", optionally a "system" beside or inside
messages        {"messages": [{"role": "user", "content": ...}, ...]}
alpaca          {"instruction": ..., "input": ..., "output": ..., "history": [[question, answer], ...]}
query_response  {"query": ..., "response": ..., "system": ..., "history": [[question, answer], ...]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# C0 and C1 but tab and line ends; zero-width and bidirectional controls; BOM; the replacement character.
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffd"
CONTROL = re.compile(f"[{_CONTROL}]")
# Those, white space, and what only joins or shapes the characters around it.
_INVISIBLE = re.compile(rf"[\s{_CONTROL}\u00ad\u200c\u200d\u2061-\u2064\ufe00-\ufe0f]*")

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}


class RecordError(ValueError):
    """One row cannot be read: which field, and what is wrong with it. The place is added by who knows it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Turn(NamedTuple):
    """One turn; ``role`` is user or assistant."""

    role: str
    text: str


class Conversation(NamedTuple):
    """A system prompt (None: the data gives none) and turns in their order."""

    id: str
    system: str | None
    turns: tuple[Turn, ...]


def detect_format(record: object) -> str:
    """Name the layout of one row by its keys; raises RecordError when it is none of the known ones."""
    if not isinstance(record, dict):
        raise RecordError("row", f"is {_kind(record)}, not an object; write one JSON object per conversation")
    if "conversations" in record:
        turns = record["conversations"]
        first = turns[0] if _is_list(turns) and turns else None
        human = isinstance(first, dict) and first.get("from") in ("human", "gpt")
        return "sharegpt" if human or "system" in record else "reference"
    if "messages" in record:
        return "messages"
    if "instruction" in record and "output" in record:
        return "alpaca"
    if "query" in record and "response" in record:
        return "query_response"
    keys = ", ".join(list(map(str, record))[:6]) or "none"
    raise RecordError("row", f"has no known layout (keys: {keys}); use conversations, messages, "
                      "instruction/output or query/response")  # fmt: skip


def parse_record(record: object, layout: str = "auto") -> Conversation:
    """Read one row; ``layout`` is one of :data:`qwen_job.data.spec.FORMATS`. Raises RecordError.

    The order of roles is not judged here (see :func:`order_problems`), so that ``data check`` can report it.
    """
    name = detect_format(record) if layout == "auto" or not isinstance(record, dict) else layout
    assert isinstance(record, dict)
    if name in ("reference", "sharegpt"):
        return _listed(record, "conversations")
    if name == "messages":
        return _listed(record, "messages")
    if name == "alpaca":
        return _pair(record, "instruction", "output")
    return _pair(record, "query", "response")


def order_problems(conversation: Conversation) -> Iterator[RecordError]:
    """Yield what keeps a conversation from being trained on: order of roles, empty turns, no answer."""
    turns = conversation.turns
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            field = f"turn {number + 1} ({turn.role})"
            yield RecordError(field, f"should be the {expected}'s; let user and assistant take turns, user first")
            break
        if _INVISIBLE.fullmatch(turn.text):
            what = "holds only invisible characters" if turn.text.strip() else "is empty"
            yield RecordError(f"turn {number + 1} ({turn.role})", f"{what}; give it text or remove the conversation")
    if "assistant" not in [turn.role for turn in turns]:
        yield RecordError("turns", "hold no assistant answer to learn from; add one or remove the conversation")
    texts = [conversation.system or "", *[turn.text for turn in turns]]
    if not _has_lone_surrogate("".join(texts)):
        return
    for number, text in enumerate(texts):
        if _has_lone_surrogate(text):
            where = f"turn {number}" if number else "system"
            yield RecordError(where, r"holds half of a surrogate pair (\ud800-\udfff); re-export the text as UTF-8")


def _has_lone_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _listed(record: dict[Any, Any], key: str) -> Conversation:
    entries = record.get(key)
    if not _is_list(entries):
        raise RecordError(key, f"is {_kind(entries)}; write a list of turns")
    if not entries:
        raise RecordError(key, "is empty; write at least one question and one answer")
    turns = [_turn(entry, key, number) for number, entry in enumerate(entries)]
    system = _optional_text(record, "system")
    if turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    return Conversation(str(record.get("id", "")), system, tuple(turns))


def _turn(entry: object, key: str, number: int) -> Turn:
    # Most turns are right: where a turn stands is spelled out only for one that is not.
    if not isinstance(entry, dict):
        raise RecordError(f"{key}[{number}]", f"is {_kind(entry)}; write an object with a role and a text")
    role_key = "from" if "from" in entry else "role"
    text_key = "value" if "value" in entry else "content"
    if role_key not in entry or text_key not in entry:
        message = "lacks its role or its text; write from and value, or role and content"
        raise RecordError(f"{key}[{number}]", message)
    name, text = entry[role_key], entry[text_key]
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        message = f"is {name!r}; write system, user or assistant"
        raise RecordError(f"{key}[{number}].{role_key}", message)
    return Turn(role, text if isinstance(text, str) else _text(text, f"{key}[{number}].{text_key}"))


def _text(value: object, field: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    raise RecordError(field, f"is {_kind(value)}; write a string")


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _pair(record: dict[Any, Any], question: str, answer: str) -> Conversation:
    for key in (question, answer):
        if key not in record:
            raise RecordError(key, "is missing")
    asked = _text(record[question], question)
    extra = _optional_text(record, "input") if question == "instruction" else None
    turns = [*_history(record), Turn("user", f"{asked}\n{extra}" if extra else asked)]
    turns.append(Turn("assistant", _text(record[answer], answer)))
    return Conversation(str(record.get("id", "")), _optional_text(record, "system"), tuple(turns))


def _history(record: dict[Any, Any]) -> Iterator[Turn]:
    history = record.get("history") or []
    for number, pair in enumerate(history if _is_list(history) else [history]):
        if not _is_list(pair) or len(pair) != 2:
            raise RecordError(f"history[{number}]", "is not a pair; write [question, answer]")
        yield Turn("user", _text(pair[0], f"history[{number}][0]"))
        yield Turn("assistant", _text(pair[1], f"history[{number}][1]"))


def _optional_text(record: dict[Any, Any], key: str) -> str | None:
    return _text(record[key], key) if record.get(key) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true/false",
        type(None): "missing or null",
    }
    return names.get(type(value), "a number")
