"""Show texts side by side in a terminal, including Chinese: a wide character takes two columns."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from itertools import zip_longest

_GAP = 2


def width_of(text: str) -> int:
    """Return the columns that a line of text takes."""
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Wrap text to ``width`` columns, at a space if the line has one in its second half."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        rest = paragraph.expandtabs(4)
        while width_of(rest) > width:
            cut = _fit(rest, width)
            space = rest.rfind(" ", cut // 2, cut + 1)
            # Chinese may be cut anywhere; only words of letters are kept whole.
            cut = space if space > 0 and _columns(rest[cut]) == _columns(rest[cut - 1]) == 1 else cut
            lines.append(rest[:cut].rstrip())
            rest = rest[cut:].lstrip()
        lines.append(rest)
    return lines


def _fit(text: str, width: int) -> int:
    used = 0
    for index, letter in enumerate(text):
        used += _columns(letter)
        if used > width:
            return max(index, 1)
    return len(text)


def side_by_side(columns: Mapping[str, str], width: int) -> list[str]:
    """Return lines with each text under its name, in columns of equal width."""
    each = max(10, (width - _GAP * (len(columns) - 1)) // len(columns))
    wrapped = [[name, "-" * min(each, len(name)), *wrap(text, each)] for name, text in columns.items()]
    lines = []
    for cells in zip_longest(*wrapped, fillvalue=""):
        padded = [cell + " " * (each - width_of(cell)) for cell in cells]
        lines.append((" " * _GAP).join(padded).rstrip())
    return lines
