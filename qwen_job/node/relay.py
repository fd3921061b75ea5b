"""Forwards stop requests from the launcher to its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from qwen_job.errors import StoppedAndSaved
from qwen_job.node import attempts
from qwen_job.run.signals import FORWARDED, STOP_SIGNAL, hear, leave_now, watch


class Relay:
    """Forwards a signal to the workers as USR1, with its name; one that arrives before they exist is kept for them.

    After a disconnect, the relay kills workers that have not saved within ``grace_seconds``, because nobody else will.
    Before any worker starts there is nothing to save: the launcher exits at once, whatever it waits for. ``run``: the
    run folder, if this node counts its attempts.
    """

    def __init__(self, grace_seconds: float, run: Path | None = None) -> None:
        self.pids: Callable[[], list[int]] = list
        self.used = False
        self._grace = grace_seconds
        self._run = run
        self._waiting = True
        self._deciding = threading.Lock()
        # In memory, because a handler must not wait for storage; the workers read it through this process.
        self._got = os.memfd_create("forwarded") if sys.platform == "linux" else -1
        os.environ[FORWARDED] = f"/proc/{os.getpid()}/fd/{self._got}"
        hear(self._forward)
        watch(self._leave)

    def starting(self) -> None:
        """Note that from now on there are workers to forward signals to."""
        with self._deciding:
            self._waiting = False

    def waiting(self) -> None:
        """Note that there are no workers any more, and that the launcher waits for another node."""
        with self._deciding:
            self._waiting = True

    def started(self) -> None:
        """Forward to new workers what arrived while they were started."""
        if self.used:
            self._send(STOP_SIGNAL)

    def retire(self) -> None:
        """Ignore signals from now on: Python drops handlers as it exits, and a late one would replace the exit code."""
        hear(signal.SIG_IGN)

    def _leave(self, number: int) -> None:
        """Exit, from the watching thread, if no worker has been started."""
        with self._deciding:
            if not self._waiting:
                return
            code = StoppedAndSaved.exit_code
            name = signal.Signals(number).name
            print(f"qwen-job: {name} before training started: nothing to save", file=sys.stderr, flush=True)
            if self._run:
                attempts.end(self._run, code, signalled=True)
            leave_now(code)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if not self.used and self._got >= 0:
            os.write(self._got, str(number).encode())
        self.used = True
        self._send(STOP_SIGNAL)
        if number == signal.SIGHUP:
            timer = threading.Timer(self._grace, self._send, [signal.SIGKILL])
            timer.daemon = True
            timer.start()

    def _send(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
