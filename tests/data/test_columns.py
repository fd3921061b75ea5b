"""What a table holds as null for want of a value is left out; a null that somebody wrote is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data.formats import parse_record
from qwen_job.data.rows import read_rows

pyarrow = pytest.importorskip("pyarrow")


def read(tmp_path: Path, **columns: Any) -> list[Any]:
    """Write a table of columns and read its rows."""
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    return [row for _, row in read_rows(tmp_path / "rows.parquet")]


def calling(arguments: Any) -> list[dict[str, Any]]:
    """Return a question and a call with these arguments."""
    return [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]},
    ]


def arguments_of(row: Any) -> Any:
    """Return the arguments of the only call of a row."""
    return parse_record(row).turns[1].calls[0].arguments


def test_a_struct_has_only_the_keys_with_a_value(tmp_path: Path) -> None:
    given: list[Any] = [{"city": "Paris"}, {"days": 2, "place": {"lat": 1.5}}, {"place": {"long": 2.5}}]
    rows = read(tmp_path, id=["1", "2", None], messages=[calling(each) for each in given])
    assert list(map(arguments_of, rows)) == given
    assert [row.get("null_arguments") for row in rows] == [2, 1, 2]
    assert [set(parse_record(row).unused) for row in rows] == [{"id", "null_arguments"}] * 3
    assert "id" in rows[2]  # a column is there in every row


def test_a_null_in_json_or_in_a_map_is_kept(tmp_path: Path) -> None:
    as_json = read(tmp_path, messages=[calling(json.dumps({"city": None}))])
    assert arguments_of(as_json[0]) == {"city": None}
    mapping = pyarrow.map_(pyarrow.string(), pyarrow.string())
    call = pyarrow.struct({"name": pyarrow.string(), "arguments": mapping})
    turn = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string(), "tool_calls": pyarrow.list_(call)})
    made = pyarrow.array([calling([("city", None), ("days", "2")])], pyarrow.list_(turn))
    [row] = read(tmp_path, messages=made)
    assert arguments_of(row) == {"city": None, "days": "2"} and "null_arguments" not in row


def test_a_map_with_a_key_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    tags = pyarrow.array([[("k", 1), ("k", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    [row] = read(tmp_path, query=["q"], response=["a"], tags=tags)
    assert row["tags"] == [["k", 1], ["k", 2]]


def test_null_beside_the_text_of_a_turn_is_nothing(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning": "so", "loss": 1}]]
    [row] = read(tmp_path, messages=turns, tools=pyarrow.array([None], pyarrow.string()))
    assert row == {"messages": turns[0], "tools": None} and not parse_record(row).unused
