"""Read the files of a run folder safely: on a shared file system they may contain anything.

An unreadable file counts as missing, and every number returned here can be printed and drawn.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from qwen_job import strict_json, strict_yaml
from qwen_job.atomic import read_limited
from qwen_job.run.folder import RunFolder

MAX_OBJECT = 16 * 2**20
# Bytes of metrics.jsonl to read: over a million steps.
MAX_METRICS = 256 * 2**20
# No real time, size, count or loss exceeds this.
LARGEST = 1e18
_SMALLEST = 1e-30


def is_path(text: str) -> bool:
    """Return whether a file can have this name: no NUL, no lone surrogates, not too long."""
    try:
        return "\0" not in text and len(os.fsencode(text)) < 4096
    except UnicodeEncodeError:
        return False


def written_at(path: Path) -> float:
    """Return when a file was written (unix seconds), 0 without one."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def there(path: Path) -> bool:
    """Return whether a file exists, as far as this user can see."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_object(path: Path, unread: list[str] | None = None) -> dict[str, Any]:
    """Return a JSON file's object; empty if it is missing, damaged or not an object.

    ``unread`` is called with a message if the file exists but cannot be used.
    """
    try:
        value = strict_json.load(path, max_bytes=MAX_OBJECT, finite=False)
        if isinstance(value, dict):
            return value
        reason = "is not a JSON object"
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except ValueError as error:
        reason = str(error)
    if unread is not None:
        unread.append(f"{path}: {reason}")
    return {}


def read_lines(path: Path, unread: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; lines that are incomplete, not objects or nested too deeply are skipped.

    ``unread`` is called with a message about the number of skipped lines, or why there are none to read.
    """
    try:
        lines = _lines(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        if unread is not None:
            unread.append(f"{path}: {getattr(error, 'strerror', None) or error}")
        return []
    found = [value for line in lines if (value := parse_line(line)) is not None]
    if unread is not None and len(found) < len(lines):
        unread.append(f"{path}: {len(lines) - len(found):,} of {len(lines):,} lines cannot be read and are left out")
    return found


def last_line(path: Path, kind: str) -> dict[str, Any]:
    """Return the last object of a JSON-lines file with this ``type``, read from its end; empty without one."""
    try:
        lines = _lines(path)
    except (OSError, ValueError):
        return {}
    mark = json.dumps(kind).encode()
    return next(
        (v for line in reversed(lines) if mark in line and (v := parse_line(line)) and v.get("type") == kind), {}
    )


def _lines(path: Path) -> list[bytes]:
    return [line for line in read_limited(path, MAX_METRICS).split(b"\n") if line.strip()]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Return the object of one line of a JSON-lines file; None if it is not one."""
    try:
        value = strict_json.loads(line.decode("utf-8", "replace"), finite=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def number(value: Any) -> float | None:
    """Return a measured number; None for anything that is not a finite number or is impossibly large."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if abs(value) > LARGEST:
        return None
    return float(value) if abs(value) > _SMALLEST else 0.0


def whole(value: Any) -> int | None:
    """Return a count; None for anything that is not a whole number or is impossibly large."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST else None


def read_settings(run: Path, unread: list[str] | None = None) -> dict[str, Any]:
    """Return a run's train.yaml as plain values, empty if missing; if damaged, ``unread`` gets a line about it."""
    try:
        values = strict_yaml.load(RunFolder(run).train)
        if isinstance(values, dict):
            return values
        reason = "is not a mapping of settings"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
    if unread is not None:
        unread.append(f"{RunFolder(run).train}: {reason}")
    return {}
