"""Stop requests: USR1, TERM, HUP and the time limit ask the run to save at the next step boundary and leave.

While steps are taken the handler only notes the request. Ranks agree on it through the collective that opens every
step (see trainer.py), so all of them stop at the same step; a further signal changes nothing. Before the first step
there is nothing to save, and while the model is exported everything is saved: every rank then leaves by itself, at
once, whatever it waits for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from qwen_job.errors import StoppedAndSaved, UsageError
from qwen_job.run.folder import RunFolder

# What the launcher sends its workers, and blocks in them until they listen.
WISH = signal.SIGUSR1
# The limit of this attempt in seconds, from the target that has one; empty or unset where there is none.
TIME_LIMIT = "QWEN_JOB_TIME_LIMIT_SECONDS"
# When the attempt began, in unix seconds.
STARTED = "QWEN_JOB_STARTED"
BEFORE_STEPS = "before the first step: there is nothing new to save"
# A stop is to be over within a second.
_REACT_SECONDS = 0.5


def hear(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Call ``handler`` on USR1, TERM and HUP from now on; one that is ignored stays so (nohup). Main thread only."""
    for number in (WISH, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def watch(heard: Callable[[int], None]) -> None:
    """Call ``heard`` from a thread of its own for each of the three signals. Main thread only, after :func:`hear`.

    Python's handlers wait until the main thread is back from C, from a rendezvous for one; this does not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A forked data worker that is ended must not look as if this process had been asked.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def read() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in (WISH, signal.SIGTERM, signal.SIGHUP):
                    heard(number)

    threading.Thread(target=read, name="signals", daemon=True).start()


def leave_now(code: int) -> None:
    """End this process and what it started, from any thread, without waiting for anything."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(code)


class StopWish:
    """What this rank heard: ``reason`` stays None until a signal came or the time limit is near.

    ``leaving`` is called with the error when the main thread did not react and the process is about to be ended.
    """

    def __init__(self, limit: TimeLimit | None = None) -> None:
        self.reason: str | None = None
        self.leaving: Callable[[StoppedAndSaved], None] = lambda error: print(f"qwen-job: {error}", file=sys.stderr)
        self._interruptible = ""
        self._raised = False
        self._limit = limit

    def listen(self) -> None:
        """Note signals from now on. Call from the main thread."""
        hear(self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WISH})
        watch(self._insist)

    def heard(self, step_seconds: float = 0.0) -> bool:
        """Tell whether to save and leave; a step that would end after the deadline is not begun."""
        if self.reason is None and self._limit is not None and self._limit.is_near(step_seconds):
            self.reason = "the time limit is near"
        return self.reason is not None

    def leave_if_heard(self) -> None:
        """Raise StoppedAndSaved when a signal has come. For the time before the first step."""
        if self.heard():
            raise StoppedAndSaved(f"{self.reason} {BEFORE_STEPS}")

    @contextlib.contextmanager
    def interrupting(self, when: str = BEFORE_STEPS) -> Iterator[None]:
        """Raise StoppedAndSaved in the middle of what is done here, as soon as a signal comes.

        Where the main thread does not react, since it waits in C or a library swallowed the error, the process ends.
        """
        if self.reason is not None:
            raise StoppedAndSaved(f"{self.reason} {when}")
        self._interruptible = when
        try:
            yield
        finally:
            self._interruptible = ""

    def hold(self) -> None:
        """From now on only note signals: a step has begun. Inside :meth:`interrupting`."""
        self._interruptible = ""

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {signal.Signals(number).name}"
        if self._interruptible and not self._raised:
            self._raised = True
            raise StoppedAndSaved(f"{self.reason} {self._interruptible}")

    def _insist(self, number: int) -> None:
        time.sleep(_REACT_SECONDS)
        if self._interruptible:
            self.leaving(StoppedAndSaved(f"signal {signal.Signals(number).name} {self._interruptible}"))
            leave_now(StoppedAndSaved.exit_code)


class TimeLimit:
    """When this attempt must leave: the limit that its target named, counted from its start, less the time to save.

    Before it is acted upon, ``RUN/launch/ends_at`` is read: the batch script asks Slurm again near the end, and writes
    there that an administrator gave the job more time.

    Raises:
        UsageError: QWEN_JOB_TIME_LIMIT_SECONDS is no number.
    """

    def __init__(self, run: Path, grace_seconds: float) -> None:
        self._file, self._grace = RunFolder(run).ends_at, grace_seconds
        self._ends_at: float | None = None
        if text := os.environ.get(TIME_LIMIT, "").strip():
            if not text.replace(".", "", 1).isdecimal():
                raise UsageError(f"{TIME_LIMIT}: {text!r} is no number of seconds")
            self._ends_at = allocation_start() + float(text)

    def is_near(self, step_seconds: float = 0.0) -> bool:
        """Tell whether a step of ``step_seconds`` that began now would end too late to save after it."""
        while self._is_over(step_seconds):
            if not self._extended():
                return True
        return False

    def _is_over(self, step_seconds: float) -> bool:
        return self._ends_at is not None and time.time() + step_seconds > self._ends_at - self._grace

    def _extended(self) -> bool:
        """Take a later end from the file if it is there for this attempt; tell whether it was."""
        try:
            ends_at, started = self._file.read_text("ascii").split()
            later = float(ends_at)
        except (OSError, ValueError):
            return False
        if started != os.environ.get(STARTED) or self._ends_at is None or later <= self._ends_at:
            return False
        self._ends_at = later
        return True


def allocation_start() -> float:
    """Return when the allocation began (unix seconds): Slurm says so, else the launcher, else now."""
    for variable in (STARTED, "SLURM_JOB_START_TIME"):
        text = os.environ.get(variable, "")
        if text.replace(".", "", 1).isdigit():
            return float(text)
    return time.time()
