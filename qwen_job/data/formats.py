"""Read one row of a user's file as a Conversation.

reference          {"id": ..., "conversations": [{"from": "user", "value": ...}, {"from": "assistant", ...}]}
sharegpt           the same with "human" and "gpt", optionally a "system" beside or inside
messages           {"messages": [{"role": "user", "content": ...}, ...]}
alpaca             {"instruction": ..., "input": ..., "output": ..., "history": [[question, answer], ...]}
query_response     {"query": ..., "response": ..., "system": ..., "history": [[question, answer], ...]}
prompt_completion  {"prompt": ..., "completion": ...}, two texts or two lists of turns; only the completion is learnt

Any of them may have tools (or functions), enable_thinking and chat_template_kwargs. See :mod:`qwen_job.data.turns` for
what a turn may have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.data.calls import read_tools
from qwen_job.data.keys import RecordError as RecordError
from qwen_job.data.keys import advice_for, carries, refuse_depth, unused_keys
from qwen_job.data.turns import REASONING, Reading, read_inline, read_turns, split_thought
from qwen_job.data.values import from_json, is_list, kind, refuse_not_finite, text_of

_NONE: frozenset[str] = frozenset()
_new = tuple.__new__
_NO_OPTIONS: Mapping[str, Any] = {}
_REASONING = frozenset(REASONING)
# Keys of a row that are read in every layout.
_TOOLS = ("tools", "functions")
_OPTIONS = ("enable_thinking", "chat_template_kwargs")
_BESIDE = frozenset({*_TOOLS, *_OPTIONS})
_SHARED = _BESIDE | {"system"}
# The keys of a row that are read, layout by layout.
_USED = {
    "conversations": _SHARED | {"conversations"},
    "messages": _SHARED | {"messages"},
    "alpaca": _SHARED | {"instruction", "input", "output", "history", *REASONING},
    "query_response": _SHARED | {"query", "response", "history", *REASONING},
    "prompt_completion": _SHARED | {"prompt", "completion", *REASONING},
}


def detect_format(record: object) -> str:
    """Name the layout of one row by its keys.

    Raises:
        RecordError: it has no known layout.
    """
    if not isinstance(record, dict):
        raise RecordError("row", f"is {kind(record)}, not an object; write one JSON object per conversation")
    name = "conversations" if record.get("conversations") else "messages" if record.get("messages") else ""
    name = name or _by_keys(record)
    if name == "conversations":
        turns = record["conversations"]
        first = turns[0] if is_list(turns) and turns else None
        human = isinstance(first, dict) and first.get("from") in ("human", "gpt")
        return "sharegpt" if human or "system" in record else "reference"
    if name:
        return name
    keys = ", ".join([str(key)[:40] for key in list(record)[:6]]) or "none"
    raise RecordError("row", f"has no known layout (keys: {keys}); use conversations, messages, instruction/output, "
                      f"query/response or prompt/completion{advice_for(record)}")  # fmt: skip


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
    "prompt_completion": ("prompt", "completion"),
}


def parse_record(
    record: object, layout: str = "auto", ignored: frozenset[str] = _NONE, thinking: str = "keep"
) -> Conversation:
    """Read one row.

    The order of roles is not checked here (see :func:`~qwen_job.data.order.order_problems`), so that ``data check`` can
    report it.

    Args:
        layout: auto, or the one that the row must have.
        ignored: keys of rows and turns that are not read.
        thinking: ``data.thinking``; as_written leaves <think>...</think> in a text, otherwise it becomes reasoning.

    Raises:
        RecordError: a field is wrong, or a key not in ``ignored`` has content that training would lose.
    """
    name = detect_format(record) if layout == "auto" or not isinstance(record, dict) else layout
    assert isinstance(record, dict)
    reading = _reading(ignored, thinking)
    if name in ("reference", "sharegpt"):
        return _listed(record, "conversations", reading)
    if name == "messages":
        return _listed(record, "messages", reading)
    if name == "prompt_completion":
        return _prompt_completion(record, reading)
    if name == "alpaca":
        return _pair(record, "instruction", "output", reading)
    return _pair(record, "query", "response", reading)


@lru_cache(maxsize=64)
def _reading(ignored: frozenset[str], thinking: str) -> Reading:
    # The same for all rows of a file: making one for each takes longer than finding it.
    return Reading(ignored, thinking == "as_written")


def _listed(record: dict[Any, Any], key: str, reading: Reading) -> Conversation:
    unused: list[str] = []
    entries = record.get(key)
    turns = read_turns(entries if type(entries) is list and entries else _entries(record, key), key, reading, unused)
    system = None
    if "system" in record or turns[0].role == "system":
        system, turns = _system_first(record, key, turns)
    if not turns:
        raise RecordError(key, "holds a system turn and nothing else; write at least one question and one answer")
    return _conversation(record, key, system, turns, reading, unused)


def _system_first(record: dict[Any, Any], key: str, turns: list[Turn]) -> tuple[str | None, list[Turn]]:
    """Return the system prompt, which is the first of the turns or beside them, and the other turns."""
    system = _optional_text(record, "system")
    if turns[0].role != "system":
        return system, turns
    if system and system != turns[0].text:
        raise RecordError("system", f"is given beside the turns and with another text as {key}[0]; keep one")
    return turns[0].text, turns[1:]


def _entries(record: dict[Any, Any], key: str) -> Sequence[object]:
    entries = record.get(key)
    if isinstance(entries, str) and entries.lstrip().startswith("["):
        entries = from_json(entries, key, "a list of turns")
    if not isinstance(entries, (list, tuple)):
        raise RecordError(key, f"is {kind(entries)}; write a list of turns")
    if not entries:
        raise RecordError(key, "is empty; write at least one question and one answer")
    return entries


def _conversation(
    record: dict[Any, Any], layout: str, system: str | None, turns: list[Turn], reading: Reading, unused: list[str]
) -> Conversation:
    """Return the conversation of ``turns``, with what the row has beside them."""
    if len(record) == 1:
        return _plain("", system, turns, unused)
    used = _USED[layout] - reading.ignored if reading.ignored else _USED[layout]
    unused += unused_keys(record, used, reading.ignored, said=_Said(turns))
    name = str(record.get("id", ""))
    if _BESIDE.isdisjoint(record):
        return _plain(name, system, turns, unused)
    tools = _tools(record, used)
    if tools:
        turns = read_inline(turns, layout)
    if tools and system and "<tools>" in system and "</tools>" in system:
        message = ("lists tools in <tools></tools>, and the row has tools, so that a template would list them twice; "
                   "remove the list from this text, or add tools to data.ignore_keys")  # fmt: skip
        raise RecordError("system", message)
    return Conversation(name, system, tuple(turns), tuple(unused), tools, _options(record, used))


def _plain(name: str, system: str | None, turns: list[Turn], unused: list[str]) -> Conversation:
    # The constructor takes twice as long.
    return _new(Conversation, (name, system, tuple(turns), tuple(unused), (), _NO_OPTIONS))


def _tools(record: dict[Any, Any], used: frozenset[str]) -> tuple[Mapping[str, Any], ...]:
    given = [key for key in _TOOLS if key in record and key in used and carries(record[key])]
    if not given:
        return ()
    found = [read_tools(record[key], key) for key in given]
    if found[0] != found[-1]:
        raise RecordError("functions", "is given beside tools and with other functions; keep one of them")
    return found[0]


def _options(record: dict[Any, Any], used: frozenset[str]) -> Mapping[str, Any]:
    """Return what the row passes to the chat template."""
    if "chat_template_kwargs" not in record and "enable_thinking" not in record:
        return {}
    options = record.get("chat_template_kwargs") if "chat_template_kwargs" in used else None
    if isinstance(options, str) and options.strip():
        options = from_json(options, "chat_template_kwargs", "a JSON object")
    options = {key: value for key, value in _object(options, "chat_template_kwargs").items() if value is not None}
    thinking = record.get("enable_thinking") if "enable_thinking" in used else None
    if thinking is None:
        thinking = options.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise RecordError("enable_thinking", f"is {kind(thinking)}; write true or false")
    if options.get("enable_thinking") not in (None, thinking):
        raise RecordError("enable_thinking", "contradicts chat_template_kwargs.enable_thinking; keep one of them")
    return options if thinking is None else {**options, "enable_thinking": thinking}


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict | None) and carries(value):
        raise RecordError(field, f'is {kind(value)}; write an object, such as {{"enable_thinking": false}}')
    refuse_depth(value, field)
    refuse_not_finite(value, field)
    return value if isinstance(value, dict) else {}


class _Said:
    """The texts of some turns, compared only when a key needs it."""

    def __init__(self, turns: list[Turn]) -> None:
        self._turns = turns

    def __contains__(self, text: object) -> bool:
        return any(text in (turn.text, turn.reasoning) for turn in self._turns)


def _pair(record: dict[Any, Any], question: str, answer: str, reading: Reading) -> Conversation:
    for key in (question, answer):
        if key not in record:
            raise RecordError(key, "is missing")
    extra = _optional_text(record, "input") if question == "instruction" else None
    asked = "" if extra and record[question] is None else text_of(record[question], question, reading.ignored)
    if extra and extra.strip():
        asked = f"{asked}\n{extra}" if asked.strip() else extra
    turns = [Turn("user", asked), _answer(record, answer, reading)]
    if "history" in record:
        turns = [*_history(record, reading), *turns]
    layout = "alpaca" if question == "instruction" else "query_response"
    return _conversation(record, layout, _optional_text(record, "system"), turns, reading, [])


def _answer(record: dict[Any, Any], key: str, reading: Reading) -> Turn:
    """Read an answer that is a text; its reasoning is in the text, or beside it in the row."""
    text = record[key]
    turn = _spoken(text if isinstance(text, str) else text_of(text, key, reading.ignored), reading)
    if _REASONING.isdisjoint(record):
        return turn
    for name in REASONING:
        if name not in record or name in reading.ignored or not carries(record[name]):
            continue
        if turn.reasoning is not None:
            raise RecordError(name, "is given beside other reasoning; keep one of them")
        turn = turn._replace(reasoning=text_of(record[name], name))
    return turn


def _prompt_completion(record: dict[Any, Any], reading: Reading) -> Conversation:
    unused: list[str] = []
    asked = _side(record, "prompt", reading, unused)
    for turn in asked:
        if turn.learn:
            raise RecordError("prompt", "has a turn to learn, and only the completion is learnt; write messages")
    asked = [turn._replace(learn=False) if turn.role == "assistant" else turn for turn in asked]
    system, asked = _system_first(record, "prompt", asked)
    turns = asked + _side(record, "completion", reading, unused)
    return _conversation(record, "prompt_completion", system, turns, reading, unused)


def _side(record: dict[Any, Any], key: str, reading: Reading, unused: list[str]) -> list[Turn]:
    if key not in record:
        raise RecordError(key, "is missing")
    if is_list(record[key]):
        return read_turns(_entries(record, key), key, reading, unused)
    if key == "completion":
        return [_answer(record, key, reading)]
    return [Turn("user", text_of(record[key], key, reading.ignored))]


def _history(record: dict[Any, Any], reading: Reading) -> Iterator[Turn]:
    history = record.get("history")
    if history is None or history == "":
        return
    if not is_list(history):
        raise RecordError("history", f"is {kind(history)}; write a list of [question, answer]")
    for number, pair in enumerate(history):
        if not is_list(pair) or len(pair) != 2:
            raise RecordError(f"history[{number}]", "is not a pair; write [question, answer]")
        yield Turn("user", text_of(pair[0], f"history[{number}][0]"))
        yield _spoken(text_of(pair[1], f"history[{number}][1]"), reading)


def _spoken(text: str, reading: Reading) -> Turn:
    """Return an answer as a turn, its reasoning taken out of the text."""
    if "</think>" not in text or reading.as_written:
        return Turn("assistant", text)
    reasoning, text = split_thought(text)
    return Turn("assistant", text, reasoning)


def _optional_text(record: dict[Any, Any], key: str) -> str | None:
    value = record.get(key)
    return None if value is None else text_of(value, key)
