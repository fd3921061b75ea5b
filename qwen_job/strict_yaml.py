"""Read untrusted YAML, checking its depth and its number of values before a parser recurses into it.

- ``check``: reject text whose nesting or number of values, with aliases expanded, exceeds the limits
- ``loads``, ``load``: text or file -> plain values as in YAML 1.1, the format of our train.yaml

Every problem is a ValueError; the caller adds the file name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from qwen_job.atomic import read_limited

try:
    Loader = yaml.CSafeLoader
except AttributeError:  # PyYAML built without libyaml: ten times slower
    Loader = yaml.SafeLoader  # type: ignore[assignment, misc]

MAX_DEPTH = 64
MAX_VALUES = 50_000
MAX_BYTES = 16 * 2**20
TOO_DEEP = f"nested too deeply (more than {MAX_DEPTH} levels): write it with fewer brackets or less indentation"
TOO_MANY = f"holds more than {MAX_VALUES:,} values"
# A level takes a bracket, or a column before its content; a sequence may start in the column of its key.
_LEAD = re.compile(r"^[ \t?:-]+", re.MULTILINE)
_SHORT = 64 * 2**10


class Excess(ValueError):
    """YAML beyond a limit; ``line`` and ``column`` count from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        super().__init__(f"{reason} (line {line})")
        self.reason, self.line, self.column = reason, line, column


def check(text: str, loader: Any = Loader) -> None:
    """Reject YAML beyond ``MAX_DEPTH`` or ``MAX_VALUES``, counting aliases as expanded.

    Raises:
        Excess: it exceeds a limit.
        yaml.YAMLError: it is not YAML, as far as it was read.
    """
    brackets = text.count("[") + text.count("{")
    if len(text) < _SHORT and "*" not in text:
        lead = max((len(found[0].expandtabs()) for found in _LEAD.finditer(text)), default=0)
        if brackets + 2 * lead + 2 < MAX_DEPTH:
            return
    _Count(loader(text)).run()


class _Count:
    """Counts the events of a parser, without recursion."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._sizes: dict[str | None, tuple[int, int]] = {}  # anchor -> values in it, levels in it
        self._open: list[tuple[str | None, int, int]] = []  # anchor, values before it, deepest level below it
        self._values = 0

    def run(self) -> None:
        """Count to the end or to the limit."""
        try:
            while self._parser.check_event():
                self._take(self._parser.get_event())
        except yaml.MarkedYAMLError as error:
            # PyYAML 6.0.4 has its own limit, and scans ahead of the events.
            if "nesting depth" not in str(error) or error.problem_mark is None:
                raise
            raise Excess(TOO_DEEP, error.problem_mark.line + 1, error.problem_mark.column + 1) from None
        finally:
            self._parser.dispose()

    def _take(self, event: Any) -> None:
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append((event.anchor, self._values, 0))
            self._add(event, 1, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, below = self._open.pop()
            if anchor is not None:
                self._sizes[anchor] = (self._values - before, below + 1)
            self._deepen(below + 1)
        elif isinstance(event, yaml.AliasEvent):
            values, levels = self._sizes.get(event.anchor, (1, 0))
            self._add(event, values, levels)
            self._deepen(levels)
        elif isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                self._sizes[event.anchor] = (1, 0)
            self._add(event, 1, 0)

    def _add(self, event: Any, values: int, levels: int) -> None:
        self._values += values
        mark = event.start_mark
        if len(self._open) + levels > MAX_DEPTH:
            raise Excess(TOO_DEEP, mark.line + 1, mark.column + 1)
        if self._values > MAX_VALUES:
            raise Excess(TOO_MANY, mark.line + 1, mark.column + 1)

    def _deepen(self, levels: int) -> None:
        if self._open:
            anchor, before, below = self._open[-1]
            self._open[-1] = (anchor, before, max(below, levels))


def loads(text: str) -> Any:
    """Read YAML.

    Raises:
        ValueError: it is not YAML, or exceeds a limit.
    """
    try:
        check(text)
        return yaml.load(text, Loader)
    except Excess:
        raise
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {reason(error)}") from None
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except (ValueError, OverflowError, TypeError, LookupError) as error:
        # From PyYAML's constructors: a number of 5,000 digits, an invalid date, a list as a key.
        raise ValueError(f"is not YAML that can be read: {str(error)[:200]}") from None


def load(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Read a YAML file of at most ``max_bytes``.

    Raises:
        ValueError: as :func:`loads`, or it is not a regular file, too large, or not UTF-8.
        OSError: it does not exist or cannot be read.
    """
    try:
        text = read_limited(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text (byte {error.start:,})") from None
    return loads(text)


def reason(error: yaml.YAMLError) -> str:
    """Return PyYAML's message in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        return " ".join(part for part in (error.context, error.problem) if part)
    return str(error).splitlines()[0]
