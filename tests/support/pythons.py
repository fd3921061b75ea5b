"""The Python interpreters of this machine that qwen-job supports."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MINORS = (10, 11, 12, 13, 14)


def interpreters() -> dict[int, str]:
    """Return minor version -> path, for every Python 3 of :data:`MINORS` on this machine, pyenv's included."""
    found = {}
    for minor in MINORS:
        pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"3.{minor}.*/bin/python3"))
        paths = [Path(folder, f"python3.{minor}") for folder in os.environ["PATH"].split(":") if "shims" not in folder]
        own = [Path(sys.executable)] if minor == sys.version_info.minor else []
        path = next((str(path) for path in [*own, *pyenv, *paths] if path.exists()), None)
        if path:
            found[minor] = path
    return found
