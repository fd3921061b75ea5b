"""How much of its planned disk space a run folder already uses. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from qwen_job.run.folder import CHECKPOINTS, PREPARED, step_of

# Counted by the plan and reused by a resumed run; a new model/ is written before the old one is removed.
_COUNTED = (CHECKPOINTS, PREPARED)


class Held(NamedTuple):
    """Bytes in a run folder.

    ``total``: all that the plan counts; ``largest``: the largest checkpoint; ``left_over``: interrupted saves, which
    the next save deletes first.
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
    """Return the free bytes that ``run`` still needs of the ``planned`` ones; its existing files will be replaced.

    A save is written before an older one is deleted, so there must always be room for one checkpoint.
    """
    held = held_by(run)
    return max(0, planned - held.total, held.largest - held.left_over)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below ``folder``; files that disappear meanwhile count as 0."""
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
