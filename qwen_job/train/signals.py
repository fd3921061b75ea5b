"""Signals as a wish: USR1, TERM and HUP ask the run to save at the next step boundary and leave.

The handler only notes the wish. Ranks agree on it through the collective that opens every step (see
trainer.py), so all of them stop at the same step; a further signal changes nothing. Before the first step
there is nothing to save, so every rank leaves by itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from qwen_job.errors import StoppedAndSaved

# What the launcher sends its workers, and blocks in them until they listen.
WISH = signal.SIGUSR1


def hear(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Call ``handler`` on USR1, TERM and HUP from now on; one that is ignored stays so (nohup). Main thread only."""
    for number in (WISH, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class StopWish:
    """What this rank heard: ``reason`` stays None until a signal came or the time limit is near."""

    def __init__(self, limit_seconds: float | None = None, grace_seconds: float = 0.0) -> None:
        self.reason: str | None = None
        self._interrupting = False
        self._deadline = None
        if limit_seconds is not None:
            self._deadline = allocation_start() + limit_seconds - grace_seconds

    def listen(self) -> None:
        """Note signals from now on. Call from the main thread."""
        hear(self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WISH})

    def heard(self, step_seconds: float = 0.0) -> bool:
        """Tell whether to save and leave; a step that would end after the deadline is not begun."""
        if self.reason is None and self._deadline is not None and time.time() + step_seconds > self._deadline:
            self.reason = "the time limit is near"
        return self.reason is not None

    def leave_if_heard(self) -> None:
        """Raise StoppedAndSaved when a signal has come. For the time before the first step."""
        if self.heard():
            raise StoppedAndSaved(f"{self.reason} before the first step: there is nothing new to save")

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise StoppedAndSaved in the middle of what is done here, as soon as a signal comes."""
        if self.reason is not None:
            self.leave_if_heard()
        self._interrupting = True
        try:
            yield
        finally:
            self._interrupting = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {signal.Signals(number).name}"
        if self._interrupting:
            self._interrupting = False
            self.leave_if_heard()


def allocation_start() -> float:
    """Return when the allocation began (unix seconds): Slurm says so, else the launcher, else now."""
    for variable in ("QWEN_JOB_STARTED", "SLURM_JOB_START_TIME"):
        text = os.environ.get(variable, "")
        if text.replace(".", "", 1).isdigit():
            return float(text)
    return time.time()
