"""Read Parquet files as JSON Lines, within limits: a few kilobytes can expand to gigabytes of equal values."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_job.data.arrays import LARGEST_ROW, TABLE_FAULT, Chunk
from qwen_job.data.columns import Columns
from qwen_job.errors import DataError, EnvironmentFault
from qwen_job.text import visible

_ROWS = 64
# Column data that expands more than this, beyond a harmless size, is a trap.
_GROWTH, _HARMLESS = 1000, 64 << 20
_REWRITE = "write it again with smaller values and row groups, or as JSON Lines"


def parquet_chunks(path: Path, size: int) -> Iterator[Chunk]:
    """Read a Parquet file as chunks of about ``size`` bytes; ``kind`` table: a line of JSON for each row.

    A line that begins with TABLE_FAULT says why its row cannot be read.

    Raises:
        DataError: the file is damaged or too large to decompress.
        EnvironmentFault: pyarrow is not installed.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        faults = importlib.import_module("pyarrow").ArrowException
    except ImportError:
        message = f"{path}: reading Parquet needs 'pip install pyarrow'; or convert the file to JSON Lines"
        raise EnvironmentFault(message) from None
    row, lines, held = 1, list[bytes](), 0
    try:
        for line in _lines(path, parquet, size):
            lines.append(line)
            held += len(line)
            if held >= size:
                yield Chunk(row, "table", b"\n".join(lines))
                row, lines, held = row + len(lines), [], 0
    except MemoryError:
        raise DataError(f"{path}: needs more memory to decompress than is available; {_REWRITE}") from None
    except (faults, ValueError, OverflowError, LookupError, TypeError, RecursionError) as error:
        reason = visible(" ".join(str(error).split()), 200)
        raise DataError(f"{path}: is not a Parquet file, or is damaged ({reason}); copy or write it again") from error
    if lines:
        yield Chunk(row, "table", b"\n".join(lines))
    elif row == 1:
        raise DataError(f"{path}: holds no rows; write at least one conversation")


def _lines(path: Path, parquet: Any, size: int) -> Iterator[bytes]:
    table = parquet.ParquetFile(path, buffer_size=1 << 20)
    twice = [name for name, count in Counter(table.schema_arrow.names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: has {Counter(table.schema_arrow.names)[twice[0]]} columns named {twice[0]!r}; keep one"
        )
    columns = Columns(table.schema_arrow)
    for group in range(table.num_row_groups):
        # Equal values are stored once, so rows may be longer than the file suggests: read few at a time.
        most = _row_bytes(path, parquet, table, group)
        rows = max(1, min(_ROWS, size // max(most, 1)))
        for batch in table.iter_batches(batch_size=rows, row_groups=[group]):
            for value in columns.rows(batch):
                yield _line(value)


def _row_bytes(path: Path, parquet: Any, table: Any, group: int) -> int:
    """Return an upper bound of the bytes in a row.

    Raises:
        DataError: a value or a whole column is unreasonably large.
    """
    about, total = table.metadata.row_group(group), 0
    dictionaries = _longest_stored_once(parquet, path, about, group)
    for number in range(about.num_columns):
        column = about.column(number)
        values, unpacked = max(column.num_values, 1), column.total_uncompressed_size
        where = f"{path}: row group {group + 1}: {column.path_in_schema}"
        longest = max(dictionaries.get(column.path_in_schema, 0), unpacked // values)
        if longest > LARGEST_ROW:
            raise DataError(f"{where}: holds values of {longest >> 20} MiB: at most {LARGEST_ROW >> 20}; {_REWRITE}")
        if unpacked > _HARMLESS and unpacked > _GROWTH * max(column.total_compressed_size, 1):
            packed = column.total_compressed_size >> 10
            raise DataError(f"{where}: expands from {packed} KiB to {unpacked >> 20} MiB; {_REWRITE}")
        total += longest * -(-values // max(about.num_rows, 1))
    return total


def _longest_stored_once(parquet: Any, path: Path, about: Any, group: int) -> dict[str, int]:
    """Return the length of the longest value in the dictionary of each column of text that has one."""
    columns = [about.column(number) for number in range(about.num_columns)]
    texts = [c.path_in_schema for c in columns if c.physical_type == "BYTE_ARRAY" and c.has_dictionary_page]
    if not texts or not about.num_rows:
        return {}
    compute = importlib.import_module("pyarrow.compute")
    table = parquet.ParquetFile(path, read_dictionary=texts, buffer_size=1 << 20)
    found: dict[str, int] = {}
    for text in texts:
        # One row is enough: it comes with the whole dictionary.
        batch = next(table.iter_batches(batch_size=1, row_groups=[group], columns=[text]), None)
        for array in [] if batch is None else _dictionaries(batch.columns):
            found[text] = compute.max(compute.binary_length(array)).as_py() or 0
    return found


def _dictionaries(arrays: list[Any]) -> Iterator[Any]:
    for array in arrays:
        if hasattr(array, "dictionary"):
            yield array.dictionary
        elif hasattr(array, "flatten") and array.type.num_fields:
            inner = array.flatten()
            yield from _dictionaries(inner if isinstance(inner, list) else [inner])


def _line(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="replace")
    try:
        # Bytes that are not UTF-8 are kept; the parser of the line reports them.
        line = json.dumps(value, ensure_ascii=False, default=_plain).encode(errors="surrogateescape")
    except RecursionError:
        return (TABLE_FAULT + "is nested too deeply").encode()
    return line if len(line) <= LARGEST_ROW else (TABLE_FAULT + f"is longer than {LARGEST_ROW >> 20} MiB").encode()


def _plain(value: object) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
