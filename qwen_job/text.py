"""Text for people: everything that a terminal shows passes through here.

A terminal executes control sequences. A key in job.yaml, a file name or a model's answer may contain sequences that
change its title, hide a line or reverse the reading order, so invisible characters are printed as escapes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

# C0, DEL, C1; marks and overrides of the reading order; line separators; invisible fillers; tags; lone surrogates.
HIDDEN = (
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
LONGEST = 4_000
GIB = 2**30
# Minimum similarity of two words, from 0 to 1 as in difflib: for a single suggestion, for each of several, and to treat
# a word as a mistake because of its similarity alone.
LIKELY, POSSIBLE, MISSPELT = 0.55, 0.45, 0.8
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# Colour, and clearing a progress line.
_OURS = re.compile("(\x1b\\[(?:[0-9;]{0,12}m|2K))")
_LAYOUT = "\n\t\r"


def visible(text: object, limit: int | None = LONGEST, *, keep: str = "") -> str:
    r"""Return ``text`` as one line without control characters: ESC becomes ``\x1b``, a line end ``\n``.

    ``limit``: maximum number of characters; the middle of a longer text is replaced by a note. ``keep``: characters to
    keep, such as ``"\n\t"`` in an answer of several lines. Letters of every script and emoji are unchanged.
    """
    shown = str(text)
    if limit is not None and len(shown) > limit:
        shown = _cut(shown, limit)
    if shown.isprintable():
        return shown
    return re.sub(HIDDEN, lambda found: found[0] if found[0] in keep else _escape(found[0]), shown)


def visible_lines(text: object, limit: int | None = LONGEST) -> str:
    """Return ``text`` with its line ends and tabs kept and each line made :func:`visible`."""
    return "\n".join(visible(line, limit, keep="\t") for line in str(text).split("\n"))


def _cut(text: str, limit: int) -> str:
    note = f" ...({len(text) - limit:,} characters more)... "
    tail = limit // 4
    return text[: limit - tail] + note + (text[-tail:] if tail else "")


def _escape(character: str) -> str:
    if character in _LAYOUT:
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else (f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")


def json_text(value: Any, **options: Any) -> str:
    """Return ``value`` as JSON with control characters escaped; it reads back unchanged. ``options``: of json.dumps."""

    text = json.dumps(value, ensure_ascii=False, **options)
    return re.sub(HIDDEN, lambda found: found[0] if found[0] in _LAYOUT else json.dumps(found[0])[1:-1], text)


class VisibleStream(io.TextIOWrapper):
    """Standard output or error without control sequences, except colour on a terminal.

    Escapes any line that did not pass through :func:`visible`. ``lossy``: drop output that cannot be written, for
    example to a full standard error.
    """

    def __init__(self, stream: io.TextIOWrapper, *, lossy: bool = False) -> None:
        super().__init__(
            stream.buffer,
            stream.encoding,
            "backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self._kept = stream  # otherwise it would close the buffer when collected
        self._terminal = stream.isatty()
        self._dropped: tuple[type[OSError], ...] = (OSError,) if lossy else ()

    def flush(self) -> None:
        """Write buffered text."""
        with contextlib.suppress(*self._dropped):
            super().flush()

    def write(self, text: str) -> int:
        """Write ``text`` with hidden characters escaped; keeps line ends, tabs and, on a terminal, carriage returns."""
        shown = text
        if not text.replace("\n", "").isprintable() and re.search(HIDDEN, text):
            parts = _OURS.split(text) if self._terminal else [text]
            keep = _LAYOUT if self._terminal else "\n\t"
            shown = "".join(p if number % 2 else visible(p, None, keep=keep) for number, p in enumerate(parts))
        with contextlib.suppress(*self._dropped):
            super().write(shown)
        return len(text)


def gib(size: float) -> str:
    """Return bytes in GiB with one decimal: ``23.4 GiB``."""
    return f"{size / GIB:.1f} GiB"


def gib_or_mib(size: float) -> str:
    """Return bytes in GiB, or in MiB below one GiB: ``23.4 GiB``, ``512 MiB``."""
    return gib(size) if size >= GIB else f"{size / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``.

    Rounded to seconds below ten minutes, to minutes below a day, else to hours.
    """
    step = 1 if seconds < 600 else 60 if seconds < 86400 else 3600
    whole = round(seconds / step) * step
    for (size, unit), (smaller, smaller_unit) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def read_duration(text: str) -> float:
    """Return the seconds that :func:`duration` wrote; other text counts as 0."""
    sizes = {unit: size for size, unit in _UNITS}
    return float(sum(int(number) * sizes[unit] for number, unit in re.findall(r"(\d+) (d|h|min|s)\b", text)))


def nearest(word: str, known: Iterable[str], count: int = 1, *, cutoff: float | None = None) -> list[str]:
    """Return up to ``count`` of the ``known`` words that are most similar to ``word``, ignoring case.

    A single suggestion must be ``LIKELY``; several may be just ``POSSIBLE``, because the reader chooses.
    """
    import difflib  # only after a mistake

    by_lower = {entry.lower(): entry for entry in known}
    least = cutoff or (LIKELY if count == 1 else POSSIBLE)
    return [by_lower[found] for found in difflib.get_close_matches(word.lower(), by_lower, n=count, cutoff=least)]


def did_you_mean(word: object, known: Iterable[str], prefix: str = "", *, cutoff: float = LIKELY) -> str:
    """Return ``; did you mean 'x'?`` with the nearest of ``known`` after ``prefix``, or an empty string."""
    found = nearest(str(word), known, cutoff=cutoff)
    return f"; did you mean '{prefix}{found[0]}'?" if found else ""


def show_path(path: str | os.PathLike[str]) -> None:
    """Print a path to standard output: unchanged into a pipe, for scripts; escaped on a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{visible(os.fspath(path), None)}\n")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()


def clear_screen() -> None:
    """Clear the screen if standard output is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(b"\x1b[2J\x1b[1;1H")
        sys.stdout.buffer.flush()
