"""Files of conversations -> rows, streaming: memory stays flat for any size, also for one huge JSON array.

A file is read as :class:`Chunk` s of a few MiB of raw text, which can be handed to another process, and a
chunk is parsed into rows. Rows count from 1: the element of a JSON array, the line of a JSON Lines file, the
row of a table.
"""

from __future__ import annotations

import codecs
import gzip
import importlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, cast

from qwen_job.errors import DataError, EnvironmentFault

CHUNK_BYTES = 4 << 20
LARGEST_ROW = 64 << 20
_SPACE = " \t\r\n"
# A JSON error this near to the end of what was read so far may only mean that the rest is not there yet.
_MARGIN = 16
_NUMBER_TAIL = 3


class Chunk(NamedTuple):
    """A run of whole rows: ``kind`` lines holds JSON Lines, ``kind`` array holds ``{...},{...}``; UTF-8."""

    first_row: int
    kind: str
    payload: bytes


class Malformed(NamedTuple):
    """A row that is not JSON."""

    message: str


def read_chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Read a file as chunks of about ``size`` bytes. DataError: not readable as conversations, with its
    row.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'is a folder' if path.is_dir() else 'does not exist'}; give a file of conversations")
    try:
        if path.suffix == ".parquet":
            yield from _parquet_chunks(path, size)
            return
        with _open(path) as stream:
            head = _skip_mark(stream.read(size))
            start = head.lstrip()[:1]
            if start == b"[":
                yield from _array_chunks(path, stream, head, size)
            elif start == b"{":
                yield from _line_chunks(path, stream, head, size)
            elif not start:
                raise DataError(f"{path}: is empty; write at least one conversation")
            else:
                raise DataError(f"{path}: is neither a JSON array nor JSON Lines (starts with {head[:20]!r})")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: is damaged or cut off ({error}); copy it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_chunk(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """Yield (row number, value) of each row; a line that is not JSON comes as :class:`Malformed`."""
    if chunk.kind == "array":
        values = json.loads(b"[" + chunk.payload + b"]")
        yield from enumerate(values, chunk.first_row)
        return
    for row, line in enumerate(chunk.payload.split(b"\n"), chunk.first_row):
        if line.strip():
            yield row, _parse_line(line)


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (row number, value or Malformed) of every row of a file."""
    for chunk in read_chunks(path):
        yield from parse_chunk(chunk)


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return Malformed(f"is not UTF-8 at byte {error.start + 1}; convert the file to UTF-8")
    except RecursionError:
        return Malformed("is nested too deeply")
    except ValueError as error:
        return Malformed(f"is not JSON ({error}); write one JSON object per line")


def _skip_mark(head: bytes) -> bytes:
    return head[3:] if head.startswith(codecs.BOM_UTF8) else head


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix in (".zst", ".zstd"):
        return _open_zstd(path)
    return path.open("rb")


def _open_zstd(path: Path) -> IO[bytes]:
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return cast("IO[bytes]", module.open(path, "rb"))
    raise EnvironmentFault(f"{path}: reading .zst needs Python 3.14 or 'pip install zstandard'; or unpack the file")


def _line_chunks(path: Path, stream: IO[bytes], head: bytes, size: int) -> Iterator[Chunk]:
    row, rest, block = 1, b"", head
    while block:
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


def _array_chunks(path: Path, stream: IO[bytes], head: bytes, size: int) -> Iterator[Chunk]:
    scanner = _ArrayScanner(path, stream, head, size)
    first, start = 1, scanner.position
    more = True
    while more and scanner.next_element():
        full = scanner.end - start >= size
        if full:
            yield Chunk(first, "array", scanner.text[start : scanner.end].encode())
        more = scanner.step_over_comma()
        if full:
            first, start = scanner.row, scanner.forget_the_past()
    # The last element ends where the scanner noted it, before any closing bracket.
    if scanner.end > start:
        yield Chunk(first, "array", scanner.text[start : scanner.end].encode())
    elif scanner.row == 1:
        raise DataError(f"{path}: holds an empty list; write at least one conversation")


class _ArrayScanner:
    """Finds where each element of a JSON array ends, holding only the part being looked at.

    ``text[position]`` is where to go on, ``end`` the end of the last element, ``row`` the number of the next
    one.
    """

    def __init__(self, path: Path, stream: IO[bytes], head: bytes, size: int) -> None:
        self._path, self._stream, self._size = path, stream, size
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._finished = False
        self.row = 1
        self.end = 0
        self.text = self._decode(head)
        self.position = self.text.index("[") + 1

    def next_element(self) -> bool:
        """Move behind the next element; False at the closing bracket."""
        char = self._peek()
        if char == "]":
            self._expect_nothing_more()
            return False
        self._element()
        self.row += 1
        return True

    def step_over_comma(self) -> bool:
        """Move behind the comma; False, behind the closing bracket, when the array ends here."""
        char = self._peek()
        self.position += 1
        if char == ",":
            if self._peek() == "]":
                self._fail("is missing after the last comma; remove the comma")
            return True
        if char != "]":
            self._fail(f"is preceded by {char!r} where a comma belongs")
        self.position -= 1
        self._expect_nothing_more()
        return False

    def forget_the_past(self) -> int:
        self.text = self.text[self.position :]
        self.position = self.end = 0
        return 0

    def _peek(self) -> str:
        while True:
            while self.position < len(self.text) and self.text[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._more():
                self._fail("is missing: the file ends inside the list (was it cut off?); copy it again")

    def _element(self) -> None:
        while True:
            try:
                _, end = self._scan(self.text, self.position)
            except RecursionError:
                self._fail("is nested too deeply")
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _MARGIN
                if not unfinished or not self._more():
                    self._fail(f"is not JSON ({error.msg} near {self.text[error.pos : error.pos + 20]!r})")
            else:
                # What follows must be seen too: 12 may be the start of 123, and of 12.5e+3.
                if end + _NUMBER_TAIL < len(self.text) or not self._more():
                    self.position = self.end = end
                    return

    def _more(self) -> bool:
        if self._finished:
            return False
        if len(self.text) - self.position > LARGEST_ROW:
            self._fail(f"is longer than {LARGEST_ROW >> 20} MiB, or a quote is missing; split it or repair it")
        # As much again as is already held: a row of any length is scanned only a few times.
        block = self._stream.read(max(self._size, len(self.text) - self.position))
        self.text += self._decode(block)
        return True

    def _decode(self, block: bytes) -> str:
        self._finished = not block
        try:
            return self._decoder.decode(block, self._finished)
        except UnicodeDecodeError as error:
            raise DataError(f"{self._path}: after row {self.row}: is not UTF-8 ({error.reason}); "
                            "convert the file to UTF-8") from error  # fmt: skip

    def _expect_nothing_more(self) -> None:
        self.position += 1
        while True:
            rest = self.text[self.position :].strip()
            if rest:
                self._fail(f"follows the closing bracket ({rest[:20]!r}); keep one list per file")
            self.position = len(self.text)
            if not self._more():
                return

    def _fail(self, message: str) -> NoReturn:
        raise DataError(f"{self._path}:{self.row}: row: {message}")


def _parquet_chunks(path: Path, size: int) -> Iterator[Chunk]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        message = f"{path}: reading Parquet needs 'pip install pyarrow'; or convert the file to JSON Lines"
        raise EnvironmentFault(message) from None
    try:
        table = parquet.ParquetFile(path)
    except ValueError as error:
        raise DataError(f"{path}: is not a Parquet file ({error})") from error
    row, lines, held = 1, [], 0
    for batch in table.iter_batches(batch_size=1024):
        for value in batch.to_pylist():
            lines.append(json.dumps(value, ensure_ascii=False, default=str).encode())
            held += len(lines[-1])
        if held >= size:
            yield Chunk(row, "lines", b"\n".join(lines))
            row, lines, held = row + len(lines), [], 0
    if lines:
        yield Chunk(row, "lines", b"\n".join(lines))
