"""Backend local: runs the rendered script here to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from qwen_job.errors import UsageError
from qwen_job.launch.backend import Backend, Entry, Submitted
from qwen_job.launch.outputs import logs_of, run_log, show_log
from qwen_job.render.bundle import Bundle
from qwen_job.run.folder import METRICS
from qwen_job.run.reading import there


class LocalBackend(Backend):
    """A job in the foreground of the shell that started it, so no queue has it."""

    def available(self) -> bool:
        """This machine is always available."""
        return True

    def submit(self, bundle: Bundle, options: Sequence[str] = ()) -> Submitted:
        """Run the script and return its exit code (128+N for a signal N).

        SIGINT, SIGTERM and SIGUSR1 are passed on, so that the run saves before it exits.
        """
        process = subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, start_new_session=True)

        def pass_on(number: int, _: FrameType | None) -> None:
            process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

        # Python lets only the main thread handle signals; a program that submits from another one handles its own.
        ours = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        handled = ours if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, pass_on) for number in handled}
        try:
            assert process.stdin is not None
            # A script that exits early (done.json exists) does not read the rest of itself.
            with contextlib.suppress(BrokenPipeError), process.stdin as stream:
                stream.write(bundle.text.encode())
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return Submitted(f"{os.uname().nodename}-{process.pid}", code if code >= 0 else 128 - code)

    def entries(self, cluster: str = "") -> list[Entry]:
        """Return nothing: there is no queue."""
        return []

    def logs(self, entry: Entry, *, follow: bool) -> int:
        """Print the log: the first node's in the run folder, else the file that the output went to.

        Raises:
            UsageError: when there is none, because the output went to the terminal.
        """
        log = run_log(entry.run) or (Path(entry.log) if entry.log and there(Path(entry.log)) else None)
        if log:
            return show_log(log, follow=follow)
        written = logs_of(entry.run)
        kept = f"; its folder has {', '.join(map(str, written))}" if written else ""
        raise UsageError(
            f"{entry.name}: {_what(entry)}, and its output went to the terminal that started it{kept}; 'qwen-job "
            f"status {entry.run}' shows its progress, {entry.run}/{METRICS} every step, 'qwen-job report' the curves"
        )

    def cancel(self, entry: Entry) -> None:
        """Refuse: Ctrl-C in its terminal saves and ends the job.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{entry.name}: {_what(entry)}; press Ctrl-C in the terminal that runs it to end a local job")


def _what(entry: Entry) -> str:
    return "no queue has it, and its folder names none" if not entry.target else "it runs on this machine"
