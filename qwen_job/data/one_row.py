"""Read one row of a file of any size, without parsing the rows before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_job.data.rows import Chunk, parse_chunk, read_chunks
from qwen_job.errors import DataError


def read_row(path: Path, row: int) -> Any:
    """Return row ``row`` of a file, counted from 1: a value of JSON, or Malformed.

    Raises:
        DataError: the file has no such row, the row is an empty line, or the file cannot be read up to it.
        EnvironmentFault: a permission or a package is missing.
    """
    chunks, held = read_chunks(path), None
    try:
        for chunk in chunks:
            if held and chunk.first_row > row:
                break
            held = chunk
    except DataError:
        # Damage behind the row does not matter.
        if held is None or row > _last_row(held):
            raise
    assert held
    for number, value in _parsed(held, row):
        if number == row:
            return value
    last = _last_row(held)
    raise DataError(
        f"{path}: row {row} is an empty line" if row < last else f"{path}: has no row {row}; the last is {last}"
    )


def _parsed(chunk: Chunk, row: int) -> Iterator[tuple[int, Any]]:
    if chunk.kind == "array":
        return parse_chunk(chunk)
    line = chunk.payload.split(b"\n", row - chunk.first_row + 1)[row - chunk.first_row : row - chunk.first_row + 1]
    return parse_chunk(Chunk(row, chunk.kind, b"".join(line)))


def _last_row(chunk: Chunk) -> int:
    return max((number for number, _ in parse_chunk(chunk)), default=chunk.first_row)
