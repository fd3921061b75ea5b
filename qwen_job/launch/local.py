"""Backend local: the rendered script, run here to its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from types import FrameType

from qwen_job.errors import UsageError
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.outputs import run_log, show_log
from qwen_job.render.bundle import Bundle


def available() -> bool:
    """This machine is always here."""
    return True


def submit(bundle: Bundle) -> Submitted:
    """Run the script and return its exit code (128+N for a signal N).

    SIGINT, SIGTERM and SIGUSR1 are passed on, so that the run saves before it leaves.
    """
    process = subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, start_new_session=True)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        assert process.stdin is not None
        # A script that ends early (done.json is there) leaves its rest unread.
        with contextlib.suppress(BrokenPipeError), process.stdin as stream:
            stream.write(bundle.text.encode())
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return Submitted(f"{os.uname().nodename}-{process.pid}", code if code >= 0 else 128 - code)


def entries() -> list[Entry]:
    """Return nothing: a local job runs in the foreground of the shell that started it."""
    return []


def logs(entry: Entry, *, follow: bool) -> int:
    """Print what the run's folder keeps; else refuse: the output went to the terminal.

    Raises:
        UsageError: where it keeps nothing.
    """
    if log := run_log(entry.run):
        return show_log(log, follow=follow)
    where = "appears in" if follow else "is in"
    message = (
        f"{_what(entry)}; a local job's output {where} the terminal that runs it; see also {entry.run}/metrics.jsonl"
    )
    raise UsageError(f"{entry.name}: {message}")


def cancel(entry: Entry) -> None:
    """Refuse: Ctrl-C in its terminal saves and ends it.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"{entry.name}: {_what(entry)}; a local job ends with Ctrl-C in the terminal that runs it")


def _what(entry: Entry) -> str:
    return "no queue knows it, and its folder names none" if not entry.target else "it runs on this machine"
