"""Signals as a wish: USR1 and TERM ask the run to save at the next step boundary and leave.

The handler only notes the wish. Ranks agree on it through the collective that opens every step (see
trainer.py), so all of them stop at the same step; a further signal changes nothing.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_WISHES = (signal.SIGUSR1, signal.SIGTERM)


class StopWish:
    """What this rank heard: ``reason`` stays None until a signal came or the time limit is near."""

    def __init__(self, limit_seconds: float | None = None, grace_seconds: float = 0.0) -> None:
        self.reason: str | None = None
        self._deadline = None
        if limit_seconds is not None:
            self._deadline = allocation_start() + limit_seconds - grace_seconds

    def listen(self) -> None:
        """Note USR1 and TERM from now on. Call from the main thread."""
        for number in _WISHES:
            signal.signal(number, self._note)

    def heard(self, step_seconds: float = 0.0) -> bool:
        """Tell whether to save and leave; a step that would end after the deadline is not begun."""
        if self.reason is None and self._deadline is not None and time.time() + step_seconds > self._deadline:
            self.reason = "the time limit is near"
        return self.reason is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {signal.Signals(number).name}"


def allocation_start() -> float:
    """Return when the allocation began (unix seconds): Slurm says so, else the launcher, else now."""
    for variable in ("QWEN_JOB_STARTED", "SLURM_JOB_START_TIME"):
        text = os.environ.get(variable, "")
        if text.replace(".", "", 1).isdigit():
            return float(text)
    return time.time()
