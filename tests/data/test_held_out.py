"""The held-out share is a file: of the rows that are not trained on, whatever the format, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data import open_prepared, prepare_data
from qwen_job.data.check import Examiner
from qwen_job.data.clean import HoldOut, clean
from qwen_job.data.held_out import keep_held_out, write_held_out
from qwen_job.data.rows import read_rows
from qwen_job.errors import DataError, UsageError
from qwen_job.run.folder import RunFolder
from qwen_job.run.sections import DataFile, DataSpec

from .conftest import conversation


def rows(count: int) -> list[Any]:
    return [conversation(f"question {number}", f"answer {number}") for number in range(1, count + 1)]


def numbers(path: Path) -> set[int]:
    """Return the numbers in the questions of a file."""
    return {int(value["conversations"][0]["value"].split()[1]) for _, value in read_rows(path)}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.5])
def test_the_file_has_the_rows_that_are_evaluated(
    tiny: Path, tmp_path: Path, write: Callable[..., Path], name: str, weight: float
) -> None:
    spec = DataSpec(train=(DataFile(path=write(rows(330), name), weight=weight),), eval_split=0.1, packing=False)
    data = open_prepared(prepare_data(spec, tiny, tmp_path / "cache"))
    evaluated = {row for number in range(len(data.eval)) for _, row in data.eval[number].source_rows}
    trained = {row for number in range(len(data.train)) for _, row in data.train[number].source_rows}
    target = tmp_path / "held-out.jsonl"
    assert write_held_out(spec, target) == len(evaluated) > 10
    assert numbers(target) == evaluated and not evaluated & trained


def test_rows_that_turn_order_leaves_out_are_not_in_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    values = [
        row if number % 2 else {"conversations": row["conversations"][:1]} for number, row in enumerate(rows(100))
    ]
    spec = DataSpec(train=(DataFile(path=write(values)),), eval_split=0.5, turn_order="reference")
    target = tmp_path / "held-out.jsonl"
    assert 10 < write_held_out(spec, target) < 40
    assert all(len(value["conversations"]) == 2 for _, value in read_rows(target))


def test_a_run_keeps_the_file_and_writes_it_again_for_other_data(tmp_path: Path, write: Callable[..., Path]) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    spec = DataSpec(train=(DataFile(path=write(rows(100))),), eval_split=0.1)
    first, second = tmp_path / "prepared" / "a", tmp_path / "prepared" / "b"
    assert keep_held_out(spec, first, run) == 10
    before = run.held_out.read_bytes()
    assert keep_held_out(spec, first, run) is None
    other = DataSpec(train=(DataFile(path=write(rows(200))),), eval_split=0.1)
    assert keep_held_out(other, second, run) == 20 and run.held_out.read_bytes() != before
    assert keep_held_out(spec, first, run) == 20  # rows.json has changed
    run.held_out.unlink()
    assert keep_held_out(spec, first, run) == 20


@pytest.mark.parametrize("change", [{"eval_split": 0.0}, {"eval": (DataFile(path=Path("/held.json")),)}])
def test_a_run_that_holds_no_share_out_writes_no_file(
    tmp_path: Path, write: Callable[..., Path], change: dict[str, Any]
) -> None:
    spec = DataSpec(train=(DataFile(path=write(rows(10))),), **{"eval_split": 0.5, **change})
    assert keep_held_out(spec, tmp_path / "a", RunFolder(tmp_path / "run")) is None
    assert not (tmp_path / "run").exists()


def test_clean_writes_a_share_to_another_file(tmp_path: Path, write: Callable[..., Path]) -> None:
    source = write([*rows(300), {"bad": 1}, rows(1)[0]])
    held = tmp_path / "held.json"
    result = clean(source, tmp_path / "train.jsonl", Examiner(), hold_out=HoldOut(0.1, held))
    assert (result.kept, result.held_out, result.dropped) == (300, 30, 2)
    assert numbers(held) | numbers(tmp_path / "train.jsonl") == set(range(1, 301))
    assert not numbers(held) & numbers(tmp_path / "train.jsonl")
    assert len(json.loads(held.read_text())) == 30


@pytest.mark.parametrize(
    ("share", "name", "error", "word"),
    [
        (0.001, "held.json", DataError, "0.001 of 50 rows is less than one row"),
        (0.5, "train.jsonl", UsageError, "is written by this command already"),
        (0.5, "train.jsonl.dropped.jsonl", UsageError, "is written by this command already"),
        (0.5, "rows.json", UsageError, "is the original"),
        (0.5, "held.txt", UsageError, "name it .json or .jsonl"),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused_and_nothing_is_written(
    tmp_path: Path, write: Callable[..., Path], share: float, name: str, error: type[Exception], word: str
) -> None:
    source = write(rows(50))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(error, match=word):
        clean(source, tmp_path / "train.jsonl", Examiner(), hold_out=HoldOut(share, tmp_path / name), force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
