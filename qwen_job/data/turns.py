"""Read the turns of a row: their roles and texts, reasoning, calls of tools and results, and which of them are learnt.

Besides a role and a text, a turn may have these keys:

assistant   reasoning_content (or reasoning, thinking); tool_calls; function_call, of OpenAI's older API and Qwen-Agent
tool        name (or tool_name), tool_call_id
any         loss, loss_scale, weight, train, ...: whether it is learnt, 1 or 0, true or false

A call may also be a turn with a role for itself (function_call, tool_call); it belongs to the assistant turn before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Turn
from qwen_job.data.calls import MARK, inline_calls, inline_results, read_calls
from qwen_job.data.keys import SWITCHES, RecordError, carries, refuse_depth, role_advice, unused_keys
from qwen_job.data.values import kind, short, text_of
from qwen_job.text import did_you_mean

# Roles that most data has, and the others: each with the role that it becomes.
PLAIN_ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
_CALL_ROLES = frozenset({"function_call", "tool_call"})
_TOOL_ROLES = frozenset({"tool", "observation", "function", "tool_response", "function_response", "ipython"})
ROLES = {
    **PLAIN_ROLES,
    "developer": "system",
    **dict.fromkeys(_CALL_ROLES, "assistant"),
    **dict.fromkeys(_TOOL_ROLES, "tool"),
}
# Of turns that may be read as a role and a text.
_BARE_ROLES = {**PLAIN_ROLES, **dict.fromkeys(_TOOL_ROLES, "tool")}
REASONING = ("reasoning_content", "reasoning", "thinking")
_new = tuple.__new__
_INSTEAD_OF_TEXT = (*REASONING, "tool_calls", "function_call")
_NAMES = ("name", "tool_name")
# The keys of most entries that are more than a role and a text.
_CALLING = frozenset({"role", "content", "tool_calls"})
_ANSWERING = frozenset({"role", "content", "tool_call_id"})
_READ: dict[str, frozenset[str]] = {
    "assistant": frozenset({*REASONING, "tool_calls", "function_call", *SWITCHES}),
    "tool": frozenset({*_NAMES, "tool_call_id", *SWITCHES}),
    "user": SWITCHES,
    "system": SWITCHES,
}


class Reading(NamedTuple):
    """How turns are read: keys to ignore, and whether <think>...</think> in a text remains there."""

    ignored: frozenset[str] = frozenset()
    as_written: bool = False


def read_turns(entries: Iterable[object], key: str, reading: Reading, unused: list[str]) -> list[Turn]:
    """Read the entries of the list ``key``, a system turn among them; ignored keys are added to ``unused``.

    Raises:
        RecordError: an entry is no turn, or has content that training would lose.
    """
    turns: list[Turn] = []
    special = False
    continuing: set[int] = set()  # set[int]() takes ten times as long
    for number, entry in enumerate(entries):
        turn = _plain_turn(entry, reading.as_written)
        if turn is None:
            special = True
            field = f"{key}[{number}]"
            turn, bare = _usual_turn(entry, field, reading, unused), False
            if turn is None:
                turn, bare = _read_turn(entry, field, reading, unused)
            if bare:
                continuing.add(number)
            elif turn.reasoning is not None and not turn.text.strip() and not turn.calls:
                continuing.add(number + 1)
        elif turn[0] == "tool":
            special = True
        turns.append(turn)
    if not special:
        return turns
    turns = list(_joined(turns, continuing, key)) if continuing else turns
    return read_inline(turns, key) if "tool" in [turn[0] for turn in turns] else turns


def read_inline(turns: list[Turn], key: str) -> list[Turn]:
    """Read calls and results that are written into the texts of a conversation with tools.

    Raises:
        RecordError: what is written as a call is none.
    """
    if not [turn for turn in turns if MARK in turn[1]]:
        return turns
    read: list[Turn] = []
    for number, turn in enumerate(turns):
        if turn.role == "assistant":
            read.append(inline_calls(turn, f"{key}[{number}]"))
        elif turn.role == "tool":
            read += inline_results(turn)
        else:
            read.append(turn)
    return read


def split_thought(text: str) -> tuple[str | None, str]:
    """Return the reasoning in <think>...</think> at the start of an answer, None without it, and the rest.

    The newlines around both are the frame of Qwen's templates, not content. An answer without the opening <think>, as
    models produce whose prompt ends with it, is taken apart where </think> is a line.
    """
    start = text.lstrip()
    if start.startswith("<think>"):
        thought, end, answer = start[len("<think>") :].partition("</think>")
    elif "<think>" in text:
        return None, text
    else:
        thought, end, answer = text.partition("\n</think>\n")
    return (thought.strip("\n"), answer.lstrip("\n")) if end else (None, text)


def _plain_turn(entry: object, as_written: bool) -> Turn | None:
    """Read what most entries are: a role, a text and nothing else. None: it is more than that."""
    if not isinstance(entry, dict):
        return None
    size = len(entry)
    if size == 2 and "role" in entry and "content" in entry:
        name, text = entry["role"], entry["content"]
    else:
        name = entry["from"] if "from" in entry else entry.get("role")
        text = entry["value"] if "value" in entry else entry.get("content")
        # In a table, other turns may fill keys that are null in this one.
        if size != 2 and list(entry.values()).count(None) != size - 2:
            return None
    role = _BARE_ROLES.get(name) if isinstance(name, str) else None
    if role is None or not isinstance(text, str):
        return None
    if role == "assistant" and "</think>" in text and not as_written:
        reasoning, text = split_thought(text)
        return Turn(role, text, reasoning)
    # The constructor takes twice as long.
    return _new(Turn, (role, text, None, (), None, "", ""))


def _usual_turn(entry: object, field: str, reading: Reading, unused: list[str]) -> Turn | None:
    """Read an answer with calls, or a result with an ID, as OpenAI's API has them. None: it is more than that."""
    if type(entry) is not dict or len(entry) != 3:
        return None
    role, text = entry.get("role"), entry.get("content")
    if role == "assistant" and entry.keys() == _CALLING and "tool_calls" not in reading.ignored:
        calls, words = entry["tool_calls"], "" if text is None else text
        if type(words) is not str or type(calls) is not list or not carries(calls):
            return None
        if "</think>" in words and not reading.as_written:
            return None
        read = read_calls(calls, f"{field}.tool_calls", reading.ignored, unused)
        return _new(Turn, (role, words, None, read, None, "", ""))
    if role == "tool" and entry.keys() == _ANSWERING and "tool_call_id" not in reading.ignored:
        call_id = entry["tool_call_id"]
        if type(text) is str and type(call_id) is str and call_id.strip():
            return _new(Turn, (role, text, None, (), None, "", call_id))
    return None


def _read_turn(entry: object, field: str, reading: Reading, unused: list[str]) -> tuple[Turn, bool]:
    """Return a turn, and whether it is nothing but calls, which belong to the assistant's turn before."""
    if not isinstance(entry, dict):
        raise RecordError(field, f"is {kind(entry)}; write an object with a role and a text")
    role_key = "from" if "from" in entry else "role"
    text_key = "value" if "value" in entry else "content"
    name, text, role = entry.get(role_key), entry.get(text_key), _role(entry, role_key, field)
    used = _used(role_key, text_key, role or "user", reading.ignored)
    said = (text if isinstance(text, str) else "", str(name))
    unused += unused_keys(entry, used, reading.ignored, where=f"{field}.", role=role or "user", said=said)
    values = {key: value for key, value in entry.items() if key in used and key != text_key and carries(value)}
    textless = role == "assistant" and any(key in values for key in _INSTEAD_OF_TEXT)
    if role is None or (text_key not in entry and not textless):
        raise RecordError(field, "lacks its role or its text; write from and value, or role and content")
    if name in _CALL_ROLES:
        turn = _call_turn(text, f"{field}.{text_key}", reading, unused)
        return turn._replace(learn=_learn(values, role, field)), True
    if role == "tool" and isinstance(text, dict):
        raise RecordError(f"{field}.{text_key}", "is an object; write the result as a string, such as its JSON")
    words = "" if textless and text in (None, []) else text_of(text, f"{field}.{text_key}", reading.ignored)
    turn = Turn(role, words, learn=_learn(values, role, field))
    if role == "assistant":
        turn = _answer(turn, values, field, reading, unused)
    elif role == "tool":
        turn = turn._replace(name=_one_text(values, _NAMES, field) or "", call_id=_call_id(values, field))
    return turn, "function_call" in values and not words.strip() and turn.reasoning is None


@lru_cache(maxsize=256)
def _used(role_key: str, text_key: str, role: str, ignored: frozenset[str]) -> frozenset[str]:
    return frozenset({role_key, text_key}) | (_READ[role] - ignored)


def _role(entry: dict[Any, Any], role_key: str, field: str) -> str | None:
    """Return the role of an entry, None if it has none."""
    name = entry.get(role_key)
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is not None or role_key not in entry:
        return role
    refuse_depth(name, f"{field}.{role_key}")
    advice = role_advice(name) if isinstance(name, str) else None
    meant = did_you_mean(name.lower(), ROLES) if isinstance(name, str) and name else ""
    message = f"is {short(name)}; {advice or f'write system, user, assistant or tool{meant}'}"
    raise RecordError(f"{field}.{role_key}", message, "unused_key" if advice else "malformed")


def _answer(turn: Turn, values: dict[str, Any], field: str, reading: Reading, unused: list[str]) -> Turn:
    """Add reasoning and calls to an assistant turn."""
    if "tool_calls" in values and "function_call" in values:
        raise RecordError(f"{field}.function_call", "is given beside tool_calls; keep one of them")
    reasoning, text = (None, turn.text) if reading.as_written else split_thought(turn.text)
    given = _one_text(values, REASONING, field)
    if given is not None and reasoning is not None and given.strip() != reasoning.strip():
        where = next(f"{field}.{key}" for key in REASONING if key in values)
        raise RecordError(where, "is given beside <think>...</think> with another text; keep one of them")
    calls = [call for key in ("tool_calls", "function_call") if key in values
             for call in read_calls(values[key], f"{field}.{key}", reading.ignored, unused)]  # fmt: skip
    return turn._replace(text=text, reasoning=reasoning if given is None else given, calls=tuple(calls))


def _call_turn(value: object, field: str, reading: Reading, unused: list[str]) -> Turn:
    """Read a turn whose text is a call, or several, perhaps behind <think>...</think>."""
    reasoning = None
    if isinstance(value, str) and not value.lstrip().startswith(("{", "[")):
        reasoning, value = split_thought(value)
    calls = read_calls(value, field, reading.ignored, unused)
    if not calls:
        raise RecordError(field, "holds no call; write one, or remove the turn")
    if reasoning is not None and reading.as_written:
        return Turn("assistant", f"<think>\n{reasoning}\n</think>", None, calls)
    return Turn("assistant", "", reasoning, calls)


def _one_text(values: dict[str, Any], keys: tuple[str, ...], field: str) -> str | None:
    """Return the text under one of several names; None: none of them is there."""
    found = {key: values[key] for key in keys if key in values}
    for key, value in found.items():
        if not isinstance(value, str):
            raise RecordError(f"{field}.{key}", f"is {kind(value)}; write a string")
        if value != next(iter(found.values())):
            raise RecordError(f"{field}.{key}", f"has another text than {next(iter(found))}; keep one of them")
    return next(iter(found.values()), None)


def _call_id(values: dict[str, Any], field: str) -> str:
    call_id = values.get("tool_call_id", "")
    if not isinstance(call_id, str):
        raise RecordError(f"{field}.tool_call_id", f"is {kind(call_id)}; write the ID of the call, a string")
    return call_id


def _learn(values: dict[str, Any], role: str, field: str) -> bool | None:
    """Return whether the data wants a turn learnt; None: it does not say.

    Raises:
        RecordError: a switch is neither 0 nor 1, two of them differ, or a turn that is not the assistant's has a 1.
    """
    found: dict[str, bool] = {}
    for key in SWITCHES.intersection(values):
        value = values[key]
        if not (isinstance(value, (bool, int, float)) and value in (0, 1)):
            refuse_depth(value, f"{field}.{key}")
            raise RecordError(f"{field}.{key}", f"is {short(value)}; a turn is learnt or not: write 1 or 0")
        found[key] = bool(value)
    wants = set(found.values())
    if len(wants) > 1:
        raise RecordError(f"{field}.{min(found)}", f"contradicts {max(found)}; keep one of them")
    if role != "assistant" and True in wants:
        message = f"asks to learn a turn of the {role}, and only the assistant's are learnt; write 0"
        raise RecordError(f"{field}.{min(found)}", message)
    return wants.pop() if wants and role == "assistant" else None


def _joined(turns: list[Turn], continuing: set[int], key: str) -> Iterator[Turn]:
    """Join what the format writes as several entries of one assistant turn: thoughts, a text, and calls.

    ``continuing``: entries that are calls only, or that follow one that is thoughts only.
    """
    before = turns[0]
    for number, turn in enumerate(turns[1:], 1):
        if number in continuing and before.role == turn.role == "assistant" and _continues(before, turn):
            before = _one_turn(before, turn, f"{key}[{number}]")
        else:
            yield before
            before = turn
    yield before


def _continues(before: Turn, turn: Turn) -> bool:
    has_text = bool(turn.text.strip())
    return turn.reasoning is None and not (has_text and (before.text.strip() or before.calls))


def _one_turn(before: Turn, turn: Turn, field: str) -> Turn:
    if (before.learn is not False) != (turn.learn is not False):
        message = "is one turn with the one before, and only one of them is to be learnt; give both the same loss"
        raise RecordError(field, message)
    text = before.text if before.text.strip() else turn.text
    learn = turn.learn if before.learn is None else before.learn
    return Turn("assistant", text, before.reasoning, before.calls + turn.calls, learn)
