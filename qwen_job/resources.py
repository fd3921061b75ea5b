"""Where files outside the code are: those that ship beside it, and the user's caches.

- ``resource``: configs/, charts/ and slurm/; next to the package in a checkout, inside it in an installed wheel
- ``user_cache``, ``cache_beside``: models and prepared data, which a cluster's nodes share
- ``private_cache``, ``private_state``: what belongs to one user on one machine
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """Return the path of a shipped file or folder, e.g. ``resource("configs", "jobs")``, whether or not it exists.

    An installed wheel's own copy wins over a neighbouring folder.
    """
    installed = _PACKAGE / "_resources"
    root = installed if installed.is_dir() else _PACKAGE.parent
    return root.joinpath(*parts)


def user_cache() -> Path:
    """Return the cache of models and prepared data: $QWEN_JOB_CACHE, else ~/.cache/qwen-job."""
    return Path(os.environ.get("QWEN_JOB_CACHE") or Path.home() / ".cache" / "qwen-job").expanduser()


def cache_beside(output: str) -> str:
    """Return the default cache of a job, which the runs in one folder share: .qwen-job-cache beside ``output``."""
    return str(PurePosixPath(output).parent / ".qwen-job-cache")


def private_cache() -> Path:
    """Return this user's cache on this machine: below $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-job"


def private_state() -> Path:
    """Return where this user's list of jobs is kept: below $XDG_STATE_HOME, else ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "qwen-job"
