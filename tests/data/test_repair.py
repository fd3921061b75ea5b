"""Repairs of rows: only what is beyond doubt, and the rest stays as it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from qwen_job.data.repair import REPAIRS, repair


def messages(*turns: dict[str, Any]) -> dict[str, Any]:
    """Return a row."""
    return {"messages": list(turns)}


def call(*ids: str | None, arguments: Any = "{}") -> dict[str, Any]:
    """Return a turn with calls that have these IDs."""
    calls = [{"id": one, "function": {"name": f"f-{one}", "arguments": arguments}} for one in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(one: Any) -> dict[str, Any]:
    """Return the result of a call."""
    return {"role": "tool", "tool_call_id": one, "content": f"result {one}"}


@pytest.mark.parametrize(
    ("row", "fixed", "done"),
    [
        ({"a": ["x\x07", {"b": "y\u200b"}]}, {"a": ["x", {"b": "y"}]}, "control_character"),
        ({"score": math.nan, "n": [math.inf, 1.5]}, {"score": None, "n": [None, 1.5]}, "not_finite"),
        ({"arguments": r'"{\"city\": \"Paris\"}"'}, {"arguments": '{"city": "Paris"}'}, "encoded_twice"),
        ({"arguments": r'{"city": "Pa\u200bris"}'}, {"arguments": '{"city": "Paris"}'}, "control_character"),
        ({"tools": r'[{"name": "f\u0007"}]'}, {"tools": '[{"name": "f"}]'}, "control_character"),
        (
            messages(call("a", "b"), result("b"), result("a"), {"role": "user", "content": "q"}),
            messages(call("a", "b"), result("a"), result("b"), {"role": "user", "content": "q"}),
            "result_order",
        ),
    ],
)
def test_repairs(row: Any, fixed: Any, done: str) -> None:
    assert repair(row) == (fixed, {done})
    assert done in REPAIRS
    assert repair(fixed) == (fixed, set())


@pytest.mark.parametrize(
    "row",
    [
        {"content": r'"{\"city\": \"Paris\"}" and \u0007'},
        {"arguments": '"text"'},
        {"arguments": '"[1]"'},
        {"arguments": "{"},
        {"arguments": r'{"path": "C:\\x"}'},
        {"arguments": "[" * 5000 + "\\"},
        messages(call("a", "b"), result("a"), result("b")),
        messages(call("a", "b"), result("b"), result("c")),
        messages(call("a", "b"), result("b")),
        messages(call("a", "a"), result("a"), result("a")),
        messages(call("1", "2"), result(2), result(1)),
        messages(call(None, None), result(None), result(None)),
        messages({"role": "assistant", "tool_calls": "text"}, {"role": "assistant", "tool_calls": ["text"]}),
        messages(call("a", "b"), {"role": "user", "content": "q"}, result("a")),
    ],
)
def test_the_rest_stays_as_it_is(row: Any) -> None:
    before = json.dumps(row)
    assert repair(row) == (row, set())
    assert json.dumps(row) == before


def test_deep_nesting_is_left_alone() -> None:
    deep: Any = "x\x07"
    for _ in range(3000):
        deep = [deep]
    fixed, done = repair(deep)
    assert fixed is deep and not done
