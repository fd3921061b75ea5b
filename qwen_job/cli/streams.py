"""The standard streams of a command, in whatever state the shell passes them.

- ``prepare``: open every stream and escape what a terminal shows
- ``fault_of``: an operating system error as one line
"""

from __future__ import annotations

import io
import os
import sys

from qwen_job.errors import EnvironmentFault
from qwen_job.text import VisibleStream


def prepare() -> None:
    """Replace closed streams, so that no file takes their descriptor, and escape what the others print.

    Reading a closed standard input, or writing to a closed standard output, fails with EBADF; output to a closed or
    full standard error is dropped.
    """
    sys.stdin = sys.stdin or _filled(0, os.O_WRONLY, "r")
    sys.stdout = _escaping(sys.stdout or _filled(1, os.O_RDONLY, "w"))
    sys.stderr = _escaping(sys.stderr or _filled(2, os.O_WRONLY, "w"), lossy=True)


def _filled(number: int, flags: int, mode: str) -> io.TextIOWrapper:
    try:
        os.fstat(number)
    except OSError:
        descriptor = os.open(os.devnull, flags)
        if descriptor != number:
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.set_inheritable(number, True)
    raw = io.FileIO(number, mode, closefd=False)
    buffered: io.BufferedReader | io.BufferedWriter = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, "utf-8", "backslashreplace")


def _escaping(stream: object, *, lossy: bool = False) -> VisibleStream:
    # Keep a stream that a test replaced, or that is already wrapped.
    return VisibleStream(stream, lossy=lossy) if type(stream) is io.TextIOWrapper else stream  # type: ignore[return-value]


def fault_of(error: OSError | MemoryError) -> EnvironmentFault:
    """Return an operating system error as an error that names the place."""
    if isinstance(error, MemoryError):
        return EnvironmentFault("out of memory on this machine: free some, or use a machine with more")
    place = error.filename if error.filename is not None else "standard output or input"
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    return EnvironmentFault(f"{place}: {error.strerror or error}")
