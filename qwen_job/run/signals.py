"""Stop requests: USR1, TERM, HUP and the time limit ask the run to save at the next step boundary and leave.

While steps are taken the handler only notes the request. Ranks agree on it through the collective that opens every
step (see trainer.py), so all of them stop at the same step; further signals have no effect. Before the first step
there is nothing to save, and during the export everything is already saved: each rank then exits on its own at once,
whatever it is waiting for.
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

# The launcher sends this to its workers, and blocks it in them until they listen.
STOP_SIGNAL = signal.SIGUSR1
# Path of a file with the number of the signal that the launcher got and forwards as STOP_SIGNAL.
FORWARDED = "QWEN_JOB_FORWARDED_SIGNAL"
# Time limit of this attempt in seconds, set by targets that have one; empty or unset otherwise.
TIME_LIMIT = "QWEN_JOB_TIME_LIMIT_SECONDS"
# Start of the attempt, in unix seconds.
STARTED = "QWEN_JOB_STARTED"
BEFORE_STEPS = "before the first step: there is nothing new to save"
# A stop must complete within a second.
_REACT_SECONDS = 0.5


def hear(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """Call ``handler`` on USR1, TERM and HUP from now on; ignored signals stay ignored (nohup). Main thread only."""
    for number in (STOP_SIGNAL, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def watch(heard: Callable[[int], None]) -> None:
    """Call ``heard`` from a separate thread for each of the three signals. Main thread only, after :func:`hear`.

    Python's handlers wait until the main thread returns from C, e.g. from a rendezvous; this thread does not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A signal to a forked data worker must not look like a stop request to this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def read() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in (STOP_SIGNAL, signal.SIGTERM, signal.SIGHUP):
                    heard(number)

    threading.Thread(target=read, name="signals", daemon=True).start()


def leave_now(code: int) -> None:
    """End this process and its children, from any thread, without waiting for anything."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(code)


class StopRequest:
    """The stop request of this rank; ``reason`` is None until a signal arrives or the time limit is near.

    ``leaving`` is called with the error if the main thread does not react and the process is about to exit.
    """

    def __init__(self, limit: TimeLimit | None = None) -> None:
        self.reason: str | None = None
        self.leaving: Callable[[StoppedAndSaved], None] = lambda error: print(f"qwen-job: {error}", file=sys.stderr)
        self._interruptible = ""
        self._raised = False
        self._limit = limit

    def listen(self) -> None:
        """Record signals from now on. Call from the main thread."""
        hear(self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP_SIGNAL})
        watch(self._insist)

    def heard(self, step_seconds: float = 0.0) -> bool:
        """Return whether to save and exit; a step that would end after the deadline is not started."""
        if self.reason is None and self._limit is not None and self._limit.is_near(step_seconds):
            self.reason = "the time limit is near"
        return self.reason is not None

    def leave_if_heard(self) -> None:
        """Raise StoppedAndSaved if a signal has arrived. For the time before the first step."""
        if self.heard():
            raise StoppedAndSaved(f"{self.reason} {BEFORE_STEPS}")

    @contextlib.contextmanager
    def interrupting(self, when: str = BEFORE_STEPS) -> Iterator[None]:
        """Interrupt the block with StoppedAndSaved as soon as a signal arrives.

        If the main thread does not react (it waits in C, or a library swallowed the error), the process exits.
        """
        if self.reason is not None:
            raise StoppedAndSaved(f"{self.reason} {when}")
        self._interruptible = when
        try:
            yield
        finally:
            self._interruptible = ""

    def hold(self) -> None:
        """From now on only record signals: a step has started. Call inside :meth:`interrupting`."""
        self._interruptible = ""

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or f"signal {_name(number)}"
        if self._interruptible and not self._raised:
            self._raised = True
            raise StoppedAndSaved(f"{self.reason} {self._interruptible}")

    def _insist(self, number: int) -> None:
        time.sleep(_REACT_SECONDS)
        if self._interruptible:
            self.leaving(StoppedAndSaved(f"signal {_name(number)} {self._interruptible}"))
            leave_now(StoppedAndSaved.exit_code)


def _name(number: int) -> str:
    """Return the name of a signal; of one that the launcher forwards, what the launcher itself got."""
    if number == STOP_SIGNAL:
        with contextlib.suppress(OSError, ValueError):
            return signal.Signals(int(Path(os.environ.get(FORWARDED, "")).read_bytes())).name
    return signal.Signals(number).name


class TimeLimit:
    """When this attempt must exit: its start, plus the time limit set by the target, minus the time to save.

    Before exiting, ``RUN/launch/ends_at`` is read: near the end the batch script asks Slurm again, and writes there
    if an administrator extended the job.

    Raises:
        UsageError: QWEN_JOB_TIME_LIMIT_SECONDS is not a number.
    """

    def __init__(self, run: Path, grace_seconds: float) -> None:
        self._file, self._grace = RunFolder(run).ends_at, grace_seconds
        self._ends_at: float | None = None
        if text := os.environ.get(TIME_LIMIT, "").strip():
            if not text.replace(".", "", 1).isdecimal():
                raise UsageError(f"{TIME_LIMIT}: {text!r} is not a number of seconds")
            self._ends_at = allocation_start() + float(text)

    def is_near(self, step_seconds: float = 0.0) -> bool:
        """Return whether a step of ``step_seconds`` that started now would end too late to save after it."""
        while self._is_over(step_seconds):
            if not self._extended():
                return True
        return False

    def _is_over(self, step_seconds: float) -> bool:
        return self._ends_at is not None and time.time() + step_seconds > self._ends_at - self._grace

    def _extended(self) -> bool:
        """Read a later end from the file; return whether there is one for this attempt."""
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
    """Return the start of the allocation (unix seconds), from the launcher or Slurm; else now."""
    for variable in (STARTED, "SLURM_JOB_START_TIME"):
        text = os.environ.get(variable, "")
        if text.replace(".", "", 1).isdigit():
            return float(text)
    return time.time()
