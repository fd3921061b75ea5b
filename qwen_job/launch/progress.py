"""What a run's folder tells of its progress: heartbeat and done.json."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Progress:
    """The run as its own folder tells it; ``age_seconds`` since the last heartbeat, None without one."""

    state: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    age_seconds: float | None = None


def progress_of(run: str, now: float | None = None) -> Progress:
    """Read a run's folder; an absent or half-written file gives an empty :class:`Progress`."""
    folder = Path(run)
    beat = _read(folder / "heartbeat")
    if not run or not beat:
        return Progress(state="done" if run and (folder / "done.json").exists() else "")
    written = beat.get("time")
    age = max(0.0, (time.time() if now is None else now) - written) if isinstance(written, (int, float)) else None
    return Progress(
        state="done" if (folder / "done.json").exists() else str(beat.get("state") or ""),
        step=beat.get("step"),
        total_steps=beat.get("total_steps"),
        loss=beat.get("loss"),
        tokens_per_second=beat.get("tokens_per_second"),
        eta_seconds=beat.get("eta_seconds"),
        age_seconds=age,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
