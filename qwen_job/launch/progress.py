"""What a run's folder tells of its progress: heartbeat and done.json."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The run as its own folder tells it; ``age_seconds`` since the last heartbeat, ``attempt`` from 0."""

    state: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    age_seconds: float | None = None
    attempt: int | None = None


def progress_of(run: str, now: float | None = None) -> Progress:
    """Read a run's folder; an absent or half-written file gives an empty :class:`Progress`."""
    folder = Path(run)
    done = bool(run) and (folder / "done.json").exists()
    beat = _read(folder / "heartbeat") if run else {}
    if not beat:
        return Progress(state="done" if done else "")
    return progress_from({**beat, "state": "done"} if done else beat, now)


def is_done(run: str) -> bool:
    """Tell whether a run is complete; a sweep's folder is when all of its runs are."""
    folder = Path(run)
    runs = _read(folder / "sweep.json").get("runs")
    if isinstance(runs, list):
        return all((folder / str(one["folder"]) / "done.json").exists() for one in runs)
    return bool(run) and (folder / "done.json").exists()


def progress_from(beat: dict[str, Any], now: float | None = None) -> Progress:
    """Read a heartbeat; what has another type than it should counts as missing."""
    numbers = {name: _number(beat.get(name)) for name in ("loss", "tokens_per_second", "eta_seconds", "time")}
    step, total, attempt = beat.get("step"), beat.get("total_steps"), beat.get("attempt")
    written = numbers["time"]
    return Progress(
        state=str(beat.get("state") or ""),
        step=step if isinstance(step, int) else None,
        total_steps=total if isinstance(total, int) else None,
        loss=numbers["loss"],
        tokens_per_second=numbers["tokens_per_second"],
        eta_seconds=numbers["eta_seconds"],
        age_seconds=None if written is None else max(0.0, (time.time() if now is None else now) - written),
        attempt=attempt if isinstance(attempt, int) else None,
    )


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
