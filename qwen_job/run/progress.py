"""The progress of a run, from heartbeat and done.json in its folder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import number, read_object, there, whole
from qwen_job.run.sweep_index import sweep_runs
from qwen_job.text import visible

_MOST_NAMED = 4


@dataclass(frozen=True)
class Progress:
    """The progress recorded in a run folder.

    ``age_seconds`` since the last heartbeat, ``attempt`` from 0; ``in_place``: how many attempts were restarts there;
    ``stragglers``: ranks that are slow by themselves; ``fault``: an existing file that cannot be read.
    """

    state: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    age_seconds: float | None = None
    attempt: int | None = None
    in_place: int | None = None
    stragglers: tuple[str, ...] = ()
    fault: str = ""


def progress_of(run: str, now: float | None = None) -> Progress:
    """Read a run folder; a missing file gives an empty :class:`Progress`, a damaged one sets ``fault``."""
    folder = RunFolder(Path(run))
    done = bool(run) and there(folder.done)
    unread: list[str] = []
    beat = read_object(folder.heartbeat, unread) if run else {}
    if not beat:
        return Progress(state="done" if done else "", fault="; ".join(unread))
    return progress_from({**beat, "state": "done"} if done else beat, now)


def is_done(run: str) -> bool:
    """Return whether a run is complete; a sweep is complete if all of its runs are."""
    folder = RunFolder(Path(run))
    runs = sweep_runs(folder.path) if run else None
    if runs is not None:
        return all(there(RunFolder(folder.path / one.folder).done) for one in runs)
    return bool(run) and there(folder.done)


def progress_from(beat: dict[str, Any], now: float | None = None) -> Progress:
    """Read a heartbeat; values of the wrong type count as missing."""
    numbers = {name: number(beat.get(name)) for name in ("loss", "tokens_per_second", "eta_seconds", "time")}
    step, total, attempt = beat.get("step"), beat.get("total_steps"), beat.get("attempt")
    written, slow = numbers["time"], beat.get("stragglers")
    return Progress(
        state=visible(beat.get("state") or "", 40),
        step=whole(step),
        total_steps=whole(total),
        loss=numbers["loss"],
        tokens_per_second=numbers["tokens_per_second"],
        eta_seconds=numbers["eta_seconds"],
        age_seconds=None if written is None else max(0.0, (time.time() if now is None else now) - written),
        attempt=whole(attempt),
        stragglers=tuple(visible(text, 200) for text in slow[:_MOST_NAMED]) if isinstance(slow, list) else (),
        in_place=whole(beat.get("in_place")),
    )
