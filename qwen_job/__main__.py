"""The entry point of ``qwen-job`` and ``python -m qwen_job``.

A command is a short-lived process. Garbage collection during imports and object teardown at exit took 30 of the 210 ms
of CPU time of a render, so both are skipped.
"""

import gc

gc.disable()

import atexit  # noqa: E402
import contextlib  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402

from qwen_job.cli import main  # noqa: E402


def run() -> None:
    """Run the command line and end the process with its exit code."""
    # Objects that exist now stay until exit; collect only what a long command (data prepare, chat) creates later.
    gc.freeze()
    gc.set_threshold(200_000)
    gc.enable()
    try:
        main()
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else 0)


def _leave(code: int) -> None:
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.exit(code)  # let the interpreter wait for the threads that still run
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader closed the pipe, or the stream is closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
