"""One row is found in files of every kind, and nothing else of the file needs to be right."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_job.data.one_row import read_row
from qwen_job.data.rows import Malformed
from qwen_job.errors import DataError

ROWS = [{"n": number, "text": '你好 \\"]},{[' * (number % 5)} for number in range(60)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("size", [16, 300, 4 << 20])
def test_every_row_is_found(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, size: int) -> None:
    monkeypatch.setattr("qwen_job.data.rows.read_chunks.__defaults__", (size,))
    path = write(ROWS, name)
    assert [read_row(path, number) for number in range(1, 61)] == ROWS


def test_a_compressed_file_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert read_row(path, 60) == ROWS[59]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_row_behind_the_end_is_refused_with_the_last(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(DataError, match=r"has no row 61; the last is 60$"):
        read_row(write(ROWS, name), 61)


def test_an_empty_line_and_a_bad_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \nnull\n')
    with pytest.raises(DataError, match="row 2 is an empty line"):
        read_row(path, 2)
    assert isinstance(read_row(path, 3), Malformed)
    assert read_row(path, 4) is None


def test_lines_before_the_row_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    parsed: list[bytes] = []
    monkeypatch.setattr("qwen_job.data.rows._loads", lambda line: parsed.append(line) or json.loads(line))
    assert read_row(path, 40) == ROWS[39]
    assert len(parsed) == 1


def test_damage_behind_the_row_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.data.rows.read_chunks.__defaults__", (64,))
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-40])
    assert read_row(path, 3) == ROWS[2]
    with pytest.raises(DataError, match=r"rows\.json:60: row: is not JSON"):
        read_row(path, 61)
