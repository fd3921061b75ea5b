"""Read one row of a user's file as a Conversation.

reference       {"id": ..., "conversations": [{"from": "user", "value": ...}, {"from": "assistant", ...}]}
sharegpt        the same with "human" and "gpt", optionally a "system" beside or inside
messages        {"messages": [{"role": "user", "content": ...}, ...]}
alpaca          {"instruction": ..., "input": ..., "output": ..., "history": [[question, answer], ...]}
query_response  {"query": ..., "response": ..., "system": ..., "history": [[question, answer], ...]}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qwen_job.data.conversation import Conversation, Turn
from qwen_job.data.keys import RecordError as RecordError
from qwen_job.data.keys import advice_for, refuse_depth, role_advice, unused_keys

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

_NONE: frozenset[str] = frozenset()
# The keys of a row that are read, layout by layout.
_USED = {
    "conversations": frozenset({"conversations", "system"}),
    "messages": frozenset({"messages", "system"}),
    "alpaca": frozenset({"instruction", "input", "output", "history", "system"}),
    "query_response": frozenset({"query", "response", "history", "system"}),
}
_TURN_KEYS = {(role, text): frozenset({role, text}) for role in ("from", "role") for text in ("value", "content")}
_PART_KEYS = frozenset({"type", "text"})


def detect_format(record: object) -> str:
    """Name the layout of one row by its keys.

    Raises:
        RecordError: it has no known layout.
    """
    if not isinstance(record, dict):
        raise RecordError("row", f"is {_kind(record)}, not an object; write one JSON object per conversation")
    name = next((name for name in ("conversations", "messages") if record.get(name)), "") or _by_keys(record)
    if name == "conversations":
        turns = record["conversations"]
        first = turns[0] if _is_list(turns) and turns else None
        human = isinstance(first, dict) and first.get("from") in ("human", "gpt")
        return "sharegpt" if human or "system" in record else "reference"
    if name:
        return name
    keys = ", ".join([str(key)[:40] for key in list(record)[:6]]) or "none"
    raise RecordError("row", f"has no known layout (keys: {keys}); use conversations, messages, "
                      f"instruction/output or query/response{advice_for(record)}")  # fmt: skip


def _by_keys(record: dict[Any, Any]) -> str:
    layouts = [name for name, keys in _TOLD_BY.items() if all(key in record for key in keys)]
    # A table has all columns in every row, so empty ones say nothing about the layout.
    filled = [name for name in layouts if all(record[key] for key in _TOLD_BY[name])]
    return (filled or layouts or [""])[0]


_TOLD_BY = {
    "conversations": ("conversations",),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "query_response": ("query", "response"),
}


def parse_record(record: object, layout: str = "auto", ignored: frozenset[str] = _NONE) -> Conversation:
    """Read one row in a ``layout``: auto, reference, sharegpt, messages, alpaca or query_response.

    The order of roles is not checked here (see :func:`order_problems`), so that ``data check`` can report it.

    Raises:
        RecordError: a field is wrong, or a key not in ``ignored`` has content that training would lose.
    """
    name = detect_format(record) if layout == "auto" or not isinstance(record, dict) else layout
    assert isinstance(record, dict)
    if name in ("reference", "sharegpt"):
        return _listed(record, "conversations", ignored)
    if name == "messages":
        return _listed(record, "messages", ignored)
    if name == "alpaca":
        return _pair(record, "instruction", "output", ignored)
    return _pair(record, "query", "response", ignored)


def order_problems(conversation: Conversation, turn_order: str = "strict") -> Iterator[RecordError]:
    """Yield why a conversation cannot be trained on: order of roles, empty turns, no answer.

    Unless ``turn_order`` is strict, user and assistant need not alternate.
    """
    turns = conversation.turns
    for number, turn in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected and (turn_order == "strict" or turn.role == "system"):
            field = f"turn {number + 1} ({turn.role})"
            yield RecordError(field, f"should be the {expected}'s; user and assistant must alternate, user first{_FIX}",
                              "order")  # fmt: skip
            break
        if _INVISIBLE.fullmatch(turn.text):
            what = "holds only invisible characters" if turn.text.strip() else "is empty"
            message = f"{what}; give it text or remove the conversation"
            yield RecordError(f"turn {number + 1} ({turn.role})", message, "order")
    if "assistant" not in [turn.role for turn in turns]:
        message = f"hold no assistant answer to learn from; add one or remove the conversation{_FIX}"
        yield RecordError("turns", message, "order")
    texts = [conversation.system or "", *[turn.text for turn in turns]]
    if not _has_lone_surrogate("".join(texts)):
        return
    for number, text in enumerate(texts):
        if _has_lone_surrogate(text):
            where = f"turn {number}" if number else "system"
            message = r"holds half of a surrogate pair (\ud800-\udfff); re-export the text as UTF-8"
            yield RecordError(where, message, "encoding")


_FIX = "; data.turn_order: reference or join (--turn-order) accepts such conversations"


def is_invisible(text: str) -> bool:
    """Tell whether a text is empty or has only invisible characters."""
    return _INVISIBLE.fullmatch(text) is not None


def _has_lone_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _listed(record: dict[Any, Any], key: str, ignored: frozenset[str]) -> Conversation:
    entries = record.get(key)
    if not _is_list(entries):
        raise RecordError(key, f"is {_kind(entries)}; write a list of turns")
    if not entries:
        raise RecordError(key, "is empty; write at least one question and one answer")
    unused: list[str] = []
    turns = [_turn(entry, key, number, ignored, unused) for number, entry in enumerate(entries)]
    system = _optional_text(record, "system")
    if turns[0].role == "system":
        if system and system != turns[0].text:
            raise RecordError("system", f"is given beside the turns and with another text as {key}[0]; keep one")
        system, turns = turns[0].text, turns[1:]
    if len(record) > 1:
        unused += unused_keys(record, _USED[key], ignored, said=_Said(turns))
    return Conversation(str(record.get("id", "")), system, tuple(turns), tuple(unused))


class _Said:
    """The texts of some turns, compared only when a key needs it."""

    def __init__(self, turns: list[Turn]) -> None:
        self._turns = turns

    def __contains__(self, text: object) -> bool:
        return any(turn.text == text for turn in self._turns)


def _turn(entry: object, key: str, number: int, ignored: frozenset[str], unused: list[str]) -> Turn:
    # Most turns are right: the place is spelled out only for those that are not.
    if not isinstance(entry, dict):
        raise RecordError(f"{key}[{number}]", f"is {_kind(entry)}; write an object with a role and a text")
    role_key = "from" if "from" in entry else "role"
    text_key = "value" if "value" in entry else "content"
    name, text = entry.get(role_key), entry.get(text_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None and role_key in entry:
        refuse_depth(name, f"{key}[{number}].{role_key}")
        advice = role_advice(name) if isinstance(name, str) else None
        message = f"is {_short(name)}; {advice}" if advice else f"is {_short(name)}; write system, user or assistant"
        raise RecordError(f"{key}[{number}].{role_key}", message, "unused_key" if advice else "malformed")
    if len(entry) > 2:
        used, said = _TURN_KEYS[role_key, text_key], (text if isinstance(text, str) else "", str(name))
        unused += unused_keys(entry, used, ignored, where=f"{key}[{number}].", role=role or "user", said=said)
    if role is None or text_key not in entry:
        message = "lacks its role or its text; write from and value, or role and content"
        raise RecordError(f"{key}[{number}]", message)
    return Turn(role, text if isinstance(text, str) else _text(text, f"{key}[{number}].{text_key}", ignored))


def _text(value: object, field: str, ignored: frozenset[str] = _NONE) -> str:
    if isinstance(value, str):
        return value
    if not (isinstance(value, list) and value):
        raise RecordError(field, f"is {_kind(value)}; write a string")
    for number, part in enumerate(value):
        kind = part.get("type", "text") if isinstance(part, dict) else ""
        if kind != "text":
            refuse_depth(kind, field)
            what = f"a part of type {_short(kind)}" if isinstance(part, dict) else f"{_kind(part)} in a list"
            raise RecordError(field, f"holds {what}, and only text is trained; write a string")
        if not isinstance(part.get("text"), str):
            raise RecordError(field, f"holds a part whose text is {_kind(part.get('text'))}; write a string")
        if len(part) > 1:
            unused_keys(part, _PART_KEYS, ignored, where=f"{field}[{number}].", role="user")
    return "".join(part["text"] for part in value)


def _pair(record: dict[Any, Any], question: str, answer: str, ignored: frozenset[str]) -> Conversation:
    for key in (question, answer):
        if key not in record:
            raise RecordError(key, "is missing")
    extra = _optional_text(record, "input") if question == "instruction" else None
    asked = "" if extra and record[question] is None else _text(record[question], question, ignored)
    if extra and extra.strip():
        asked = f"{asked}\n{extra}" if asked.strip() else extra
    turns = [*_history(record), Turn("user", asked)]
    turns.append(Turn("assistant", _text(record[answer], answer, ignored)))
    used = _USED["alpaca" if question == "instruction" else "query_response"]
    unused = unused_keys(record, used, ignored, said=_Said(turns))
    return Conversation(str(record.get("id", "")), _optional_text(record, "system"), tuple(turns), unused)


def _history(record: dict[Any, Any]) -> Iterator[Turn]:
    history = record.get("history")
    if history is None or history == "":
        return
    if not _is_list(history):
        raise RecordError("history", f"is {_kind(history)}; write a list of [question, answer]")
    for number, pair in enumerate(history):
        if not _is_list(pair) or len(pair) != 2:
            raise RecordError(f"history[{number}]", "is not a pair; write [question, answer]")
        yield Turn("user", _text(pair[0], f"history[{number}][0]"))
        yield Turn("assistant", _text(pair[1], f"history[{number}][1]"))


def _optional_text(record: dict[Any, Any], key: str) -> str | None:
    value = record.get(key)
    return None if value is None else _text(value, key)


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


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
