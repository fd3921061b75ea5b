"""Files are streamed into rows, whatever their packing, and damage is named by row."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.data.rows import Chunk, Malformed, parse_chunk, read_chunks, read_rows
from qwen_job.errors import DataError, EnvironmentFault

ROWS = [{"n": number, "text": '你好 \\"]},{[ 😀' * (number % 7)} for number in range(50)]


def _rows(path: Path, size: int) -> list[tuple[int, Any]]:
    return [row for chunk in read_chunks(path, size) for row in parse_chunk(chunk)]


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_in_pieces_of_any_size(tmp_path: Path, size: int, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False, indent=indent), encoding="utf-8")
    assert _rows(path, size) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize("size", range(40, 200, 7))
@pytest.mark.parametrize(
    "middle",
    [
        {"a": [{"a": 1}, {"a": 2}, {"a": [{"a": 3}, {"a": 4}]}]},
        {"a": '},\n{"a": 1},\n{"a"'},
        {"b": 1},
        7,
        {"a": {"a": 'x"},\n{"a" \\'}, "b": [{"a": 1}]},
    ],
)
def test_what_looks_like_a_seam_is_none(tmp_path: Path, middle: Any, size: int) -> None:
    path = tmp_path / "rows.json"
    rows = [*[{"a": number} for number in range(9)], middle] * 3
    path.write_text("[" + ",\n".join(map(json.dumps, rows)) + "]", encoding="utf-8")
    assert _rows(path, size) == list(enumerate(rows, 1))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_a_key_given_twice_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]}'
    bad = [
        good.replace('"content": "a"}]', '"content": "lost", "content": "a"}]'),
        f'{{"messages": [], {good[1:]}',
        good[:-1] + ', "meta": {"id": 1, "x": {"\u0069d": 1, "id": 2}}}',
    ]
    rows = [good, *bad, good]
    text = "\n".join(rows) if "jsonl" in name else f"[{', '.join(rows)}]"
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = dict(read_rows(tmp_path / name))
    assert found[1] == found[5] == json.loads(good)
    for row, key in ((2, "content"), (3, "messages"), (4, "id")):
        assert isinstance(found[row], Malformed) and f"key '{key}' more than once" in found[row].message


def test_damage_after_many_good_chunks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [json.dumps({"a": number}) for number in range(1000)]
    path.write_text("[" + ",\n".join([*rows[:700], '{"a": tru}', *rows[700:]]) + "]", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:701: row: is not JSON"):
        _rows(path, 256)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_lines_in_pieces_of_any_size(write: Callable[..., Path], size: int) -> None:
    assert _rows(write(ROWS, "rows.jsonl"), size) == list(enumerate(ROWS, 1))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(rows=st.lists(_JSON, min_size=1), size=st.integers(1, 200), ascii_only=st.booleans())
def test_any_array(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], size: int, ascii_only: bool) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.json"
    path.write_bytes(json.dumps(rows, ensure_ascii=ascii_only).encode("utf-8", "replace"))
    assert _rows(path, size) == list(enumerate(json.loads(path.read_text(encoding="utf-8")), 1))


def test_packed_files(tmp_path: Path) -> None:
    import zstandard

    text = "\n".join(map(json.dumps, ROWS)).encode()
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard.compress(text))
    for name in ("rows.jsonl.gz", "rows.jsonl.zst"):
        assert [value for _, value in read_rows(tmp_path / name)] == ROWS


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert _rows(tmp_path / "rows.parquet", 100) == list(enumerate(ROWS, 1))


def test_parquet_of_bytes_is_text_or_malformed(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"query": ["你好".encode(), b"q"], "response": [b"a\nb", b"\xff\xfe"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    (_, first), (row, second) = read_rows(tmp_path / "rows.parquet")
    assert first == {"query": "你好", "response": "a\nb"}
    assert row == 2 and isinstance(second, Malformed) and "is not UTF-8" in second.message


def test_parquet_without_rows_or_cut_off_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"query": pyarrow.array([], pyarrow.string())}), path)
    with pytest.raises(DataError, match="holds no rows"):
        list(read_rows(path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="is not a Parquet file, or is damaged"):
        list(read_rows(path))


@pytest.mark.parametrize("equal", [True, False])
def test_memory_stays_flat_for_parquet_of_long_rows(tmp_path: Path, equal: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": ("0" if equal else str(number)) * 100000} for number in range(1000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    del rows
    tracemalloc.start()
    sizes = [len(chunk.payload) for chunk in read_chunks(tmp_path / "rows.parquet", 1 << 20)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) < 2 << 20 and sum(sizes) >= 100_000_000
    assert peak + pyarrow.total_allocated_bytes() < 40 << 20


@pytest.mark.parametrize(("name", "module"), [("a.jsonl.zst", "zstandard"), ("a.parquet", "pyarrow.parquet")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(EnvironmentFault, match="pip install"):
        list(read_rows(tmp_path / name))


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a":1}\n\n  \r\n{"a":2}')
    assert list(read_rows(path)) == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_bad_line_does_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":\n\xff\xfe\n{"a":' + b"[" * 100000 + b'\n{"a":2}\n')
    rows = dict(read_rows(path))
    assert rows[1] == {"a": 1} and rows[5] == {"a": 2}
    assert all(isinstance(rows[row], Malformed) for row in (2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"   ", "is empty"),
        (b"[]", "holds an empty list"),
        (b"hello", "neither a JSON array nor JSON Lines"),
        (b'[{"a":1},{"a":2', ":2: row: is not JSON"),
        (b'[{"a":1},{"a":"never closed', ":2: row: is not JSON"),
        (b'[{"a":1}', ":2: row: is missing: the file ends inside the list"),
        (b'[{"a":1},', ":2: row: is missing: the file ends inside the list"),
        (b'[{"a":1},]', ":2: row: is missing after the last comma"),
        (b'[{"a":1} {"a":2}]', ":2: row: is preceded by '{' where a comma belongs"),
        (b'[{"a":1},{a:2},{"a":3}]', ":2: row: is not JSON"),
        (b'[{"a":1}] [', ":2: row: follows the closing bracket"),
        (b'[{"a":1},{"a":"\xff"}]', "is not UTF-8"),
        (b"[" * 100000, ":1: row: is nested too deeply"),
        (b'[{"a":1},{"a":' + b"7" * 6000 + b"}]", ":2: row: is not JSON (Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("size", [3, 1 << 20])
def test_damage_is_named(tmp_path: Path, content: bytes, message: str, size: int) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        _rows(path, size)
    assert message in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ROWS[3], indent=2).encode(), ":1: row: is one JSON object over several lines; wrap it in"),
        (json.dumps(ROWS).encode("utf-16"), "is UTF-16; convert it to UTF-8, e.g. with 'iconv -f UTF-16"),
        (json.dumps(ROWS).encode("utf-16-le"), "is UTF-16 without a mark; convert"),
        (json.dumps(ROWS).encode("utf-32"), "is UTF-32; convert"),
    ],
)
def test_what_is_nearly_right_is_told_how_to_be_right(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    assert message in str(caught.value)


def test_missing_folder_and_cut_off_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(tmp_path / "no.json"))
    with pytest.raises(DataError, match="is a folder"):
        list(read_rows(tmp_path))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode())[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


@pytest.mark.parametrize("frames", [1, 2])
def test_cut_off_zst_is_named_wherever_the_cut_is(tmp_path: Path, frames: int) -> None:
    import zstandard

    path = tmp_path / "a.jsonl.zst"
    text = "".join(json.dumps({"n": number, "text": f"{number * 7919 % 10007} " * 9}) + "\n" for number in range(9000))
    packed = [zstandard.compress(text.encode()) for _ in range(frames)]
    path.write_bytes(b"".join(packed))
    assert len(list(read_rows(path))) == 9000 * frames
    whole = path.read_bytes()
    block = zstandard.frame_header_size(whole)  # where the first block's header lies
    block += 3 + (int.from_bytes(whole[block : block + 3], "little") >> 3)
    for size in (block, len(packed[0]) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="damaged or cut off"):
            list(read_rows(path))


def test_what_is_no_zst_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b'{"a":1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl\.zst: is damaged or cut off"):
        list(read_rows(tmp_path / "a.jsonl.zst"))


def test_memory_stays_flat_for_a_huge_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = json.dumps({"text": "你好 hello " * 400}, ensure_ascii=False)
    with path.open("w", encoding="utf-8") as stream:
        stream.write("[" + f"{row},\n" * 6500 + row + "]")
    assert path.stat().st_size > 30 << 20
    tracemalloc.start()
    count = 0
    for chunk in read_chunks(path, 1 << 20):
        assert isinstance(chunk, Chunk)
        count += chunk.payload.count(b'"text"')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6501
    assert peak < 20 << 20
