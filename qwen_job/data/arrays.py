"""Split a JSON array of any size into chunks of whole elements, holding only a few MiB of it in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from qwen_job.errors import DataError

LARGEST_ROW = 16 << 20
# Prefix of a line that stands for an unreadable row of a table.
TABLE_FAULT = "\0"
_MOST_BLANKS = 16 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
# A JSON error this close to the end of the text read so far may only mean that the rest has not been read yet.
_MARGIN = 16
_NUMBER_TAIL = 3
_BETWEEN = re.compile(r'\}[ \t\r\n]*,[ \t\r\n]*\{[ \t\r\n]*"[^"\\]*"')


class Chunk(NamedTuple):
    """Whole rows in UTF-8: JSON Lines if ``kind`` is lines or table, ``{...},{...}`` if it is array."""

    first_row: int
    kind: str
    payload: bytes


def array_chunks(path: Path, stream: IO[bytes], head: bytes, size: int) -> Iterator[Chunk]:
    """Cut the array that starts in ``head`` and continues in ``stream`` into chunks of about ``size`` bytes."""
    rest, row = yield from _guessed_chunks(head[head.index(b"[") + 1 :], stream, size)
    yield from _scanned_chunks(path, stream, b"[" + rest, size, row)


def _guessed_chunks(text: bytes, stream: IO[bytes], size: int) -> Generator[Chunk, None, tuple[bytes, int]]:
    """Cut at text that looks like the seam of the first two elements; return the rest and the number of its first row.

    A cut is right if everything before it parses as elements, because JSON can be read in one way only. The rest is
    the end of the file, or everything from the first wrong guess on.
    """
    row, seam = 1, _seam(text)
    while seam and (cut := text.rfind(seam) + 1):
        try:
            count = len(json.loads(f"[{text[:cut].decode()}]"))
        except (ValueError, RecursionError):
            break
        yield Chunk(row, "array", text[:cut])
        row += count
        text = text[text.index(b",", cut) + 1 :] + stream.read(size)
    return text, row


def _seam(text: bytes) -> bytes:
    """Return the text between the first two elements: from the last brace of one to the first key of the other."""
    decoded = text.decode(errors="ignore").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except (ValueError, RecursionError):
        return b""
    between = _BETWEEN.match(decoded, end - 1)
    return between[0].encode() if between else b""


def _scanned_chunks(path: Path, stream: IO[bytes], head: bytes, size: int, row: int) -> Iterator[Chunk]:
    scanner = _ArrayScanner(path, stream, head, size, row)
    first, start = row, scanner.position
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


def refuse_blanks(path: Path, count: int) -> None:
    """Refuse ``count`` bytes of consecutive white space if no real file needs that many.

    Raises:
        DataError: it is more than 16 MiB.
    """
    if count > _MOST_BLANKS:
        raise DataError(f"{path}: holds more than {_MOST_BLANKS >> 20} MiB of white space in a row; remove it")


def split_elements(text: str) -> Iterator[str]:
    """Yield the elements of ``{...},{...}`` without parsing them."""
    depth = start = 0
    for found in _PIECES.finditer(text):
        piece = found[0]
        if piece in "[{":
            depth += 1
        elif piece in "]}":
            depth -= 1
        elif piece == "," and not depth:
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


_PIECES = re.compile(r'[\[\]{},]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class _ArrayScanner:
    """Finds where each element of a JSON array ends, holding only the part being looked at.

    ``text[position]`` is the next character, ``end`` the end of the last element, ``row`` the number of the next one.
    """

    def __init__(self, path: Path, stream: IO[bytes], head: bytes, size: int, row: int) -> None:
        self._path, self._stream, self._size = path, stream, size
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._finished = False
        self.row = row
        self.end = 0
        self.text = self._decode(head)
        self.position = self.text.index("[") + 1

    def next_element(self) -> bool:
        """Move past the next element; False at the closing bracket."""
        char = self._peek()
        if char == "]":
            self._expect_nothing_more()
            return False
        self._element()
        self.row += 1
        return True

    def step_over_comma(self) -> bool:
        """Move past the comma; False, past the closing bracket, if the array ends here."""
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
        blank = 0
        while True:
            found = _BLANKS.match(self.text, self.position)
            assert found
            blank += found.end() - self.position
            self.position = found.end()
            if self.position < len(self.text):
                return self.text[self.position]
            refuse_blanks(self._path, blank)
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
            except ValueError as error:  # a number of thousands of digits
                self._fail(f"is not JSON ({error})")
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
        # Double what is held, so that a row of any length is scanned only a few times.
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
        rest, blank = self.text[self.position + 1 :], 0
        while not rest.strip():
            blank += len(rest)
            refuse_blanks(self._path, blank)
            block = self._stream.read(self._size)
            rest = self._decode(block)
            if not block:
                return
        self._fail(f"follows the closing bracket ({rest.strip()[:20]!r}); keep one list per file")

    def _fail(self, message: str) -> NoReturn:
        raise DataError(f"{self._path}:{self.row}: row: {message}")
