"""metrics.jsonl, read back: the one reader of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from qwen_job.atomic import open_regular
from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import last_line, parse_line, read_lines

# Bytes that a follower reads of an existing file: some 25,000 steps.
_MOST_BEHIND = 8 * 2**20


def read_metrics(run: str | Path, unread: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, in order; empty without the file.

    ``run`` is the run folder. Each line has a ``type``: ``step`` (with ``step``, ``loss``, ``learning_rate``,
    ``tokens_per_second``), ``eval`` (with ``loss`` on held-out data), ``end`` and others. A line that a crash cut
    short, or that is not ours, is left out. ``unread``: gets a line about it.
    """
    return read_lines(RunFolder(Path(run)).metrics, unread)


def last_metric(run: Path, kind: str) -> dict[str, Any]:
    """Return the last line of this ``type``, read from the end of the file; empty without one."""
    return last_line(RunFolder(run).metrics, kind)


class Follower:
    """Reads what is appended to a run's metrics.jsonl, each line once; of a long file only the newest part."""

    def __init__(self, run: Path, most: int = _MOST_BEHIND) -> None:
        self._path = RunFolder(run).metrics
        self._at = -1
        self._most = most

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the complete lines since the last call; none if the file cannot be read now."""
        try:
            with open_regular(self._path) as stream:
                size = stream.seek(0, os.SEEK_END)
                if self._at < 0 or size < self._at:
                    self._at = _line_start(stream, max(0, size - self._most))
                stream.seek(self._at)
                data = stream.read(min(size - self._at, 4 * self._most))
        except (OSError, ValueError):
            return []
        whole, end, _ = data.rpartition(b"\n")
        self._at += len(whole) + len(end)
        return [found for line in whole.split(b"\n") if line.strip() and (found := parse_line(line)) is not None]


def _line_start(stream: BinaryIO, place: int) -> int:
    """Return where the first line begins at or after ``place``."""
    if not place:
        return 0
    stream.seek(place - 1)
    stream.readline(_MOST_BEHIND)
    return stream.tell()
