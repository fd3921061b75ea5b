"""Read what most rows of most files are, in a third of the time: plain turns that alternate, and perhaps an ID.

It reads nothing that :func:`qwen_job.data.formats.parse_record` would read otherwise, and refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.data.order import has_lone_surrogate, is_invisible

_new = tuple.__new__
_NO_OPTIONS: Mapping[str, Any] = {}
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_NEXT = {"user": "assistant", "assistant": "user"}


def plain_row(row: Any) -> tuple[str, Conversation] | None:
    """Return the format and the conversation of a row without problems; None: it is, or may be, more than that."""
    if type(row) is not dict:
        return None
    name: object = row.get("id", "")
    if type(name) is not str or len(row) != 1 + ("id" in row):
        return None
    if entries := row.get("conversations"):
        role_key, text_key = "from", "value"
    else:
        entries, role_key, text_key = row.get("messages"), "role", "content"
    if type(entries) is not list or not entries:
        return None
    found = _plain_turns(entries, role_key, text_key)
    if found is None:
        return None
    system, turns = found
    layout = "messages" if role_key == "role" else "reference"
    if layout == "reference" and entries[0]["from"] in ("human", "gpt"):
        layout = "sharegpt"
    # The constructor takes twice as long.
    return layout, _new(Conversation, (name, system, tuple(turns), ("id",) if "id" in row else (), (), _NO_OPTIONS))


def _plain_turns(entries: list[Any], role_key: str, text_key: str) -> tuple[str | None, list[Turn]] | None:
    """Return the system prompt, None without one, and the turns of a conversation in which nothing is unusual."""
    system, turns, texts = None, list[Turn](), list[str]()
    expected = "user"
    for entry in entries:
        if type(entry) is not dict or len(entry) != 2 or role_key not in entry or text_key not in entry:
            return None
        name, text = entry[role_key], entry[text_key]
        if type(text) is not str or type(name) is not str:
            return None
        texts.append(text)
        role = _ROLES.get(name)
        if role is None and name == "system" and not turns and system is None:
            system = text
            continue
        # Reasoning, an order that data.turn_order may change, or a turn without text: for those who know about it.
        if role != expected or "</think>" in text or (not text[:1].isalnum() and is_invisible(text)):
            return None
        expected = _NEXT[role]
        turns.append(_new(Turn, (role, text, None, (), None, "", "")))
    if len(turns) < 2 or has_lone_surrogate("".join(texts)):
        return None
    return system, turns
