"""Repair rows where the right content is beyond doubt: nothing is cut short or made up."""

from __future__ import annotations

import json
import math
from typing import Any

from qwen_job.data.order import CONTROL

# What is repaired -> its description in reports.
REPAIRS = {
    "control_character": "control or invisible characters removed",
    "not_finite": "numbers that are not finite replaced by null",
    "encoded_twice": "arguments that were converted to JSON twice converted back once",
    "result_order": "results of tools put in the order of their calls, by ID",
}
# Keys whose strings may hold JSON.
_JSON_KEYS = frozenset({"arguments", "tools"})


def repair(value: Any) -> tuple[Any, set[str]]:
    """Return a row with everything in REPAIRS done, and the names of what was done."""
    done: set[str] = set()
    try:
        return _repaired(value, "", done), done
    except RecursionError:
        return value, set()


def _repaired(value: Any, key: str, done: set[str]) -> Any:
    if isinstance(value, str):
        text = _without_control(value, done)
        return _json_string(text, key, done) if key in _JSON_KEYS else text
    if isinstance(value, list):
        return _in_order([_repaired(part, "", done) for part in value], done)
    if isinstance(value, dict):
        return {name: _repaired(part, name, done) for name, part in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        done.add("not_finite")
        return None
    return value


def _without_control(text: str, done: set[str]) -> str:
    shorter = CONTROL.sub("", text)
    if shorter != text:
        done.add("control_character")
    return shorter


def _json_string(text: str, key: str, done: set[str]) -> str:
    """Repair JSON in a string, where control characters are escapes; other text is returned as it is."""
    if not (text.startswith('"') or "\\" in text):
        return text
    try:
        value = json.loads(text)
        inner = json.loads(value) if key == "arguments" and isinstance(value, str) else None
    except (ValueError, RecursionError):
        return text
    if isinstance(inner, dict):
        done.add("encoded_twice")
        return _json_string(value, key, done)
    found: set[str] = set()
    fixed = _repaired(value, "", found)
    if "control_character" not in found:
        return text
    done.add("control_character")
    return json.dumps(fixed, ensure_ascii=False)


def _in_order(turns: list[Any], done: set[str]) -> list[Any]:
    """Put each run of tool results with IDs in the order of the calls before it, if it has one for each."""
    for start, turn in enumerate(turns):
        ids = _call_ids(turn)
        results = turns[start + 1 : start + 1 + len(ids)]
        found = [result.get("tool_call_id") for result in results if isinstance(result, dict)]
        if ids and found != ids and set(map(repr, found)) == set(map(repr, ids)):
            order = sorted(results, key=lambda result: ids.index(result["tool_call_id"]))
            turns = [*turns[: start + 1], *order, *turns[start + 1 + len(ids) :]]
            done.add("result_order")
    return turns


def _call_ids(turn: Any) -> list[str]:
    """Return the IDs of the calls of a turn, empty unless all have one and all are different."""
    calls = turn.get("tool_calls") if isinstance(turn, dict) else None
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return []
    ids = [call.get("id") for call in calls]
    usable = all(isinstance(one, str) and one for one in ids) and len(set(map(str, ids))) == len(ids)
    return [str(one) for one in ids] if usable else []
