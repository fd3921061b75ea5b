"""Paths of files outside the code: those that ship with it, and the user's caches.

- ``resource``: configs/, charts/, the pages; beside the package in a checkout, inside it in a wheel
- ``user_cache``, ``cache_beside``: models and prepared data, which a cluster's nodes share
- ``private_cache``, ``private_state``: files of one user on one machine
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_PACKAGE = Path(__file__).resolve().parent


def resource(*parts: str) -> Path:
    """Return the path of a shipped file or folder, e.g. ``resource("configs", "jobs")``, whether or not it exists.

    The copy in an installed wheel takes precedence over a neighbouring folder.
    """
    installed = _PACKAGE / "_resources"
    root = installed if installed.is_dir() else _PACKAGE.parent
    return root.joinpath(*parts)


def user_cache() -> Path:
    """Return the cache of models and prepared data: $QWEN_JOB_CACHE, else ~/.cache/qwen-job."""
    return Path(os.environ.get("QWEN_JOB_CACHE") or Path.home() / ".cache" / "qwen-job").expanduser()


def cache_beside(output: str) -> str:
    """Return the default cache of a job, shared by the runs in one folder: .qwen-job-cache next to ``output``."""
    return str(PurePosixPath(output).parent / ".qwen-job-cache")


def private_cache() -> Path:
    """Return this user's cache on this machine: below $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen-job"


def private_state() -> Path:
    """Return the folder of this user's list of jobs: below $XDG_STATE_HOME, else ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "qwen-job"
