"""What a launcher tells the processes that it starts, by environment variables, and how they end with it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from functools import cache

# What `python -m qwen_job.train` is to be: a rank if unset.
ROLE, TEMPLATE, STORE = "QWEN_JOB_ROLE", "template", "store"
# The socket to the launcher, for a role that has one.
CHANNEL = "QWEN_JOB_CHANNEL"
# One start of the launchers, the same on all nodes; how often its ranks were restarted in place, and after what.
LAUNCH, RESTARTS, AFTER = "QWEN_JOB_LAUNCH", "QWEN_JOB_RESTARTS", "QWEN_JOB_RESTARTED_AFTER"
# The threads of a rank, where it was forked from a process that must have only one.
THREADS = "QWEN_JOB_THREADS"
# From linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def restarts(environ: os._Environ[str] | dict[str, str] = os.environ) -> int:
    """Return how often the launcher has restarted this rank in place; 0 under any other launcher."""
    text = environ.get(RESTARTS, "")
    return int(text) if text.isdecimal() else 0


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends; ``parent`` is its process."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)  # it ended before


def name_process(name: str) -> None:
    """Give this process a name of at most 15 bytes, which ps and top show."""
    with contextlib.suppress(OSError):
        _prctl(_PR_SET_NAME, name.encode()[:15])


@cache
def system_calls() -> ctypes.CDLL:
    """Return the C library; a process that forks with threads calls this before, because the child must not load it."""
    return ctypes.CDLL(None)


def _prctl(option: int, value: int | bytes) -> None:
    system_calls().prctl(option, value, 0, 0, 0)
