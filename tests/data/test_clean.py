"""clean: a copy of the good rows and a list of the others; the original is never touched."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from qwen_job.data.check import Examiner, check
from qwen_job.data.clean import clean
from qwen_job.data.formats import parse_record
from qwen_job.data.rows import read_rows
from qwen_job.errors import DataError, UsageError
from tests.support.tool_rows import FORMS, conversations

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
    assert result.by_repair == {"control_character": 1}
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


def test_a_repaired_row_that_turn_order_leaves_out_is_listed(write: Callable[..., Path], tmp_path: Path) -> None:
    rows = [conversation("q", "a"), {"conversations": [{"from": "user", "value": "q\u200b"}]}]
    result = clean(write(rows), tmp_path / "out.json", Examiner(turn_order="join"))
    assert _list_of(result.dropped_list) == [(2, "order")]


def test_rules_are_chosen_but_errors_always_go(write: Callable[..., Path], tmp_path: Path) -> None:
    result = clean(write(ROWS), tmp_path / "out.jsonl", Examiner(), drop={"special_token"})
    assert _list_of(result.dropped_list) == [(3, "malformed"), (6, "special_token")]
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 4


@pytest.mark.parametrize("name", ["out.json", "out.json.jsonl", "out.json.gz", "out.jsonl.gz", "out.jsonl.zst"])
def test_the_last_suffixes_decide_the_format(write: Callable[..., Path], tmp_path: Path, name: str) -> None:
    source, contents = write(ROWS), []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        clean(source, tmp_path / folder / name, Examiner())
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]
    plain = gzip.decompress(contents[0]) if name.endswith(".gz") else contents[0]
    if name.endswith(".zst"):
        plain = zstandard.ZstdDecompressor().decompressobj().decompress(contents[0])
    assert plain.startswith(b"{" if ".jsonl" in name else b"[")
    assert [value for _, value in read_rows(tmp_path / "b" / name)] == [ROWS[0], conversation("q", "ab"), ROWS[5]]


@pytest.mark.parametrize("folder", ["out.json", "out.json.dropped.jsonl"])
def test_a_folder_in_the_way_is_left_with_all_else(write: Callable[..., Path], tmp_path: Path, folder: str) -> None:
    source = write(ROWS)
    (tmp_path / folder).mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="is a folder"):
        clean(source, tmp_path / "out.json", Examiner(), force=True)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["rows.json", "there.json", "no/where.json", "out.txt", "out.json.parquet", "out.gz"])
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["out.json", "out.jsonl.gz"])
def test_rows_with_tools_and_reasoning_read_back_the_same(
    write: Callable[..., Path], tmp_path: Path, form: str, name: str
) -> None:
    rows = [FORMS[form].write(each) for each in conversations(60)]
    result = clean(write(rows, "rows.jsonl"), tmp_path / name, Examiner())
    kept = [value for _, value in read_rows(tmp_path / name)]
    assert (result.kept, result.repaired, result.dropped) == (60, 0, 0)
    assert [parse_record(row) for row in kept] == [parse_record(row) for row in rows]
