"""Start and end the process that keeps a run's report and its figures for Prometheus current while it trains."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

# By name, because this room knows nothing of reports.
_MODULE = "qwen_job.report.live"
# How long the launcher waits for the last version of the files.
_END_SECONDS = 3.0
_DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Companion:
    """The process beside the training; it ends with this one, however this one ends."""

    def __init__(self, run: Path) -> None:
        # A scheduler signals every process of a step; the child inherits the mask until it ignores them itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _DEAF_TO)
        try:
            command = [sys.executable, "-m", _MODULE, str(run)]
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            self._process = None
            print(f"qwen-job: no live report ({error.strerror}); training is not affected", file=sys.stderr)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self) -> None:
        """Let it write once more, and end it."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
