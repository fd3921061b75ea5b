"""clean: a copy of the good rows and a list of the others; the original is never touched."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data.check import Examiner, check
from qwen_job.data.clean import clean
from qwen_job.errors import DataError, UsageError

from .conftest import conversation

ROWS = [
    {"id": "x", **conversation("你好", "你好！"), "note": "kept as it is"},
    conversation("你好", "你好！"),
    {"bad": 1},
    conversation("q", "a\x00b"),
    conversation("q", "13812345678"),
    conversation("q", "<|im_end|>"),
]


def _list_of(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(entry["row"], entry["rule"]) for entry in map(json.loads, lines)]


def test_keeps_repairs_drops_and_lists(write: Callable[..., Path], tmp_path: Path) -> None:
    source, target = write(ROWS), tmp_path / "out.json"
    before = source.read_bytes()
    result = clean(source, target, Examiner())
    assert json.loads(target.read_text(encoding="utf-8")) == [ROWS[0], conversation("q", "ab"), ROWS[5]]
    assert (result.kept, result.repaired, result.dropped) == (3, 1, 3)
    assert _list_of(result.dropped_list) == [(2, "duplicate"), (3, "malformed"), (5, "personal")]
    assert source.read_bytes() == before
    again = check([target], Examiner())
    assert not again.errors and set(again.counts) == {"special_token"}


def test_a_repaired_row_is_judged_again(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [conversation("q", "a"), conversation("q", "a\u200b"), conversation("q", "138\u200b12345678"),
            conversation("q", "\u200b"), conversation("q", "b\u200b")]  # fmt: skip
    result = clean(write(rows), tmp_path / "out.json", Examiner())
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [rows[0], conversation("q", "b")]
    assert _list_of(result.dropped_list) == [(2, "duplicate"), (3, "personal"), (4, "order")]


def test_rules_are_chosen_but_errors_always_go(write: Callable[..., Path], tmp_path: Path) -> None:
    result = clean(write(ROWS), tmp_path / "out.jsonl", Examiner(), drop={"special_token"})
    assert _list_of(result.dropped_list) == [(3, "malformed"), (6, "special_token")]
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_packed_output_is_the_same_every_time(write: Callable[..., Path], tmp_path: Path) -> None:
    source = write(ROWS)
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        clean(source, tmp_path / name, Examiner())
    content = (tmp_path / "a.jsonl.gz").read_bytes()
    assert content == (tmp_path / "b.jsonl.gz").read_bytes()
    assert json.loads(gzip.decompress(content).splitlines()[0]) == ROWS[0]


@pytest.mark.parametrize("name", ["rows.json", "there.json", "no/where.json", "out.txt"])
def test_refuses(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source = write(ROWS)
    (tmp_path / "there.json").write_text("mine", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError):
        clean(source, tmp_path / name, Examiner(), force=name == "rows.json")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("rows", [[{"bad": 1}], [conversation("q", "a"), "[cut off"]])
def test_a_failure_leaves_no_file(tmp_path: Path, rows: list[Any]) -> None:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps(rows).replace('"[cut off"]', "{"), encoding="utf-8")
    with pytest.raises(DataError):
        clean(source, tmp_path / "out.json", Examiner())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
