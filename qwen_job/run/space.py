"""What a run's folder holds already of the disk space that its plan counts. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from qwen_job.run.folder import CHECKPOINTS, PREPARED, step_of

# What the plan counts and a resumed run finds again; model/ is written anew beside an older one.
_COUNTED = (CHECKPOINTS, PREPARED)


class Held(NamedTuple):
    """Bytes in a run's folder: of all that the plan counts, of the largest checkpoint, and of what the next save
    deletes before it writes (saves that were cut short).
    """

    total: int
    largest: int
    left_over: int


def held_by(run: Path) -> Held:
    """Measure what ``run`` holds; a folder that does not exist, or cannot be read, holds nothing."""
    checkpoints = {path.name: folder_bytes(path) for path in _folders(run / CHECKPOINTS)}
    largest = max((size for name, size in checkpoints.items() if step_of(name) is not None), default=0)
    left_over = sum(size for name, size in checkpoints.items() if name.endswith(".partial"))
    return Held(sum(folder_bytes(run / name) for name in _COUNTED), largest, left_over)


def still_needed(run: Path, planned: int) -> int:
    """Return the free bytes that ``run`` needs of the ``planned`` ones: what it holds is its own and is replaced.

    A save is written before an older one is deleted, so that one checkpoint must fit at any time.
    """
    held = held_by(run)
    return max(0, planned - held.total, held.largest - held.left_over)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below ``folder``; files that vanish meanwhile count nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(where) / name).lstat().st_size
    return total


def _folders(home: Path) -> list[Path]:
    try:
        return [path for path in home.iterdir() if path.is_dir()]
    except OSError:
        return []
