"""Backend local: the rendered script, run here."""

from __future__ import annotations

import signal
import subprocess
from types import FrameType

from qwen_job.render.bundle import Bundle


def submit(bundle: Bundle) -> int:
    """Run the script to its end and return its exit code (128+N for a signal N).

    SIGINT, SIGTERM and SIGUSR1 are passed on, so that the run saves before it leaves.
    """
    process = subprocess.Popen(["bash", "-s"], stdin=subprocess.PIPE, start_new_session=True)

    def pass_on(number: int, _: FrameType | None) -> None:
        process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        assert process.stdin is not None
        process.stdin.write(bundle.text.encode())
        process.stdin.close()
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
