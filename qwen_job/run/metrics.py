"""metrics.jsonl, read back: the one reader of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import last_line, read_lines


def read_metrics(run: Path, unread: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, in order; empty without the file.

    A line that a crash cut short, or that is not ours, is left out. ``unread``: gets a line about it.
    """
    return read_lines(RunFolder(run).metrics, unread)


def last_metric(run: Path, kind: str) -> dict[str, Any]:
    """Return the last line of this ``type``, read from the end of the file; empty without one."""
    return last_line(RunFolder(run).metrics, kind)
