"""sweep.json: the runs of a sweep in the order of their tasks, in the sweep's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import is_path, read_object


class SweepRun(NamedTuple):
    """One run: its folder below the sweep's, and the fields of job.yaml that were set for it."""

    folder: str
    values: dict[str, Any]


def sweep_runs(sweep: Path) -> list[SweepRun] | None:
    """Return the runs of the sweep in a folder; None if no index is there, or if it is not one that we wrote."""
    found = read_object(RunFolder(sweep).sweep).get("runs")
    if not isinstance(found, list):
        return None
    runs = [_run(one) for one in found]
    return [run for run in runs if run is not None] if None not in runs else None


def _run(value: object) -> SweepRun | None:
    if not isinstance(value, dict) or not isinstance(value.get("values", {}), dict):
        return None
    name = value.get("folder")
    return SweepRun(name, value.get("values", {})) if isinstance(name, str) and is_path(name) else None
