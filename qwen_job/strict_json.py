"""Read untrusted JSON within limits on its depth, its size and the digits of its numbers.

- ``loads``: text -> value
- ``load``: file -> value; rejects a pipe, a device or a file that is too large before reading it

Every problem is a ValueError; the caller adds the file name.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from qwen_job.atomic import read_limited

MAX_DEPTH = 100
MAX_BYTES = 64 * 2**20
# Every integer that a float can represent has at most 309 digits.
MAX_DIGITS = 300
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


def loads(text: str | bytes, *, max_depth: int = MAX_DEPTH, finite: bool = True) -> Any:
    """Read JSON. ``finite=False`` accepts NaN and Infinity, which Python's own writer produces.

    Raises:
        ValueError: it is not JSON or not UTF-8, is nested more than ``max_depth`` deep, or holds a number that is not
            finite or has more than ``MAX_DIGITS`` digits.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 text (byte {error.start:,})") from None
    check_depth(text, max_depth)
    hooks: dict[str, Any] = {"parse_constant": _not_finite, "parse_float": _float} if finite else {}
    try:
        return json.loads(text, parse_int=_int, **hooks)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError(_too_deep(max_depth)) from None


def load(path: Path, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, finite: bool = True) -> Any:
    """Read a JSON file of at most ``max_bytes``.

    Raises:
        ValueError: as :func:`loads`, or it is not a regular file, or too large.
        OSError: it does not exist or cannot be read.
    """
    return loads(read_limited(path, max_bytes), max_depth=max_depth, finite=finite)


def check_depth(text: str, max_depth: int = MAX_DEPTH) -> None:
    """Reject JSON nested more than ``max_depth`` deep, before a parser recurses into it.

    Raises:
        ValueError: it is.
    """
    if text.count("[") + text.count("{") <= max_depth:
        return
    depth = 0
    for found in _BRACKETS.finditer(_STRING.sub("", text)):
        depth += 1 if found[0] in "[{" else -1
        if depth > max_depth:
            raise ValueError(_too_deep(max_depth))


def _too_deep(most: int) -> str:
    return f"is nested too deeply: at most {most} brackets inside each other"


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"holds a number of {len(text):,} digits: at most {MAX_DIGITS}")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"holds {text[:40]}, which is larger than a number can be here (1.8e308)")
    return number


def _not_finite(text: str) -> Any:
    raise ValueError(f"holds {text}, which is not a finite number")
