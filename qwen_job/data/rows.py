"""Stream the rows of conversation files: memory stays constant for any size, even for one huge JSON array.

A file is read as :class:`Chunk` objects, a few MiB of raw text each, which can be passed to another process and are
parsed into rows there. Rows count from 1: elements of a JSON array, lines of a JSON Lines file, rows of a table.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from qwen_job.data.arrays import LARGEST_ROW, TABLE_FAULT, array_chunks, refuse_blanks, split_elements
from qwen_job.data.arrays import Chunk as Chunk
from qwen_job.data.compress import DAMAGE, open_plain
from qwen_job.data.parquet import parquet_chunks
from qwen_job.data.values import RepeatedKey, unique_keys
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.text import visible

CHUNK_BYTES = 4 << 20
# UTF-32 first: its little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Malformed(NamedTuple):
    """A row that is not JSON."""

    message: str


def read_chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Read a file as chunks of about ``size`` bytes.

    Raises:
        DataError: the file cannot be read as conversations; the message names the row.
        EnvironmentFault: a permission or a package is missing.
    """
    assert_file(path)
    try:
        if path.suffix == ".parquet":
            yield from parquet_chunks(path, size)
            return
        with open_plain(path) as stream:
            head = _skip_mark(stream.read(size))
            _refuse_other_encodings(path, head)
            head = _skip_blanks(path, stream, head, size)
            start = head.lstrip()[:1]
            if start == b"[":
                yield from array_chunks(path, stream, head, size)
            elif start == b"{":
                _refuse_object_over_lines(path, head)
                yield from _line_chunks(path, stream, head, size)
            elif not start:
                raise DataError(f"{path}: is empty; write at least one conversation")
            else:
                what = f"is neither a JSON array nor JSON Lines (starts with {head[:20]!r})"
                raise DataError(f"{path}: {what}; write it as JSON, JSON Lines or Parquet")
    except DAMAGE as error:
        raise DataError(f"{path}: is damaged or cut off ({visible(error, 200)}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {visible(error.strerror or error, 200)}") from error


def assert_file(path: Path) -> None:
    """Check that ``path`` is a file.

    Raises:
        DataError: it is not.
        EnvironmentFault: a permission is missing to see it.
    """
    try:
        if path.is_file():
            return
        exists = path.exists()
        kind = "is a folder" if path.is_dir() else "is a pipe or a device" if exists else "does not exist"
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror}; check the rights of its folder") from error
    raise DataError(f"{path}: {kind}; give a file of conversations")


def parse_chunk(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Yield (row number, value) of each row; a line that is not JSON gives :class:`Malformed`."""
    if chunk.kind == "array":
        yield from enumerate(_parse_elements(chunk.payload), chunk.first_row)
        return
    fault = TABLE_FAULT.encode() if chunk.kind == "table" else b"\n"
    for row, line in enumerate(chunk.payload.split(b"\n"), chunk.first_row):
        if line.startswith(fault):
            yield row, Malformed(line[1:].decode())
        elif line.strip():
            yield row, _parse_line(line)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number, value or Malformed) of every row of a file."""
    for chunk in read_chunks(path):
        yield from parse_chunk(chunk)


def _parse_elements(payload: bytes) -> list[Any]:
    try:
        return list(_loads(b"[" + payload + b"]"))
    except (RecursionError, ValueError):  # the limits were slightly larger where the elements were cut
        return [_parse_line(element.encode()) for element in split_elements(payload.decode())]


def _parse_line(line: bytes) -> Any:
    try:
        return _loads(line)
    except RepeatedKey as error:
        return Malformed(str(error))
    except UnicodeDecodeError as error:
        return Malformed(f"is not UTF-8 at byte {error.start + 1}; convert the file to UTF-8")
    except RecursionError:
        return Malformed("is nested too deeply")
    except ValueError as error:
        return Malformed(f"is not JSON ({error}); write one JSON object per line")


def _loads(text: bytes) -> Any:
    if text[:1] != b"{" or text[1:2] == b"\0":
        return _DECODER.decode(text.decode(json.detect_encoding(text), "surrogatepass"))
    # Most lines: an object in UTF-8, without white space around it to skip.
    line = text.decode("utf-8", "surrogatepass")
    value, end = _DECODER.raw_decode(line)
    return value if end == len(line) else _DECODER.decode(line)


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def _skip_mark(head: bytes) -> bytes:
    return head[3:] if head.startswith(codecs.BOM_UTF8) else head


def _skip_blanks(path: Path, stream: IO[bytes], head: bytes, size: int) -> bytes:
    """Return ``head``; if it is all white space, its newlines and the first block that is not."""
    blank, lines = 0, 0
    while head and head.isspace():
        blank += len(head)
        refuse_blanks(path, blank)
        lines += head.count(b"\n")
        head = stream.read(size)
    return b"\n" * lines + head if head else b""


def _refuse_other_encodings(path: Path, head: bytes) -> None:
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked or b"\0" in head[:2]:
        name = marked or "UTF-16 without a mark"
        raise DataError(f"{path}: is {name}; convert it to UTF-8, e.g. with 'iconv -f {name[:6]} -t UTF-8'")


def _refuse_object_over_lines(path: Path, head: bytes) -> None:
    text = head.decode(errors="ignore").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return  # its line is reported, or it continues past ``head``
    if "\n" in text[:end]:
        raise DataError(f"{path}:1: row: is one JSON object over several lines; wrap it in [ ], with a comma between "
                        "objects, or write each object on one line")  # fmt: skip


def _line_chunks(path: Path, stream: IO[bytes], head: bytes, size: int) -> Iterator[Chunk]:
    row, rest, block, blank = 1, b"", head, 0
    while block:
        blank = blank + len(block) if block.isspace() else 0
        refuse_blanks(path, blank)
        text = rest + block
        cut = text.rfind(b"\n") + 1
        if cut:
            yield Chunk(row, "lines", text[:cut])
            row += text.count(b"\n", 0, cut)
        rest = text[cut:]
        if len(rest) > LARGEST_ROW:
            raise DataError(f"{path}:{row}: row: is longer than {LARGEST_ROW >> 20} MiB; split it or remove it")
        block = stream.read(size)
    if rest:
        yield Chunk(row, "lines", rest)
