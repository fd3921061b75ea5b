"""The text that ``qwen-job --version`` prints."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qwen_job import __version__
from qwen_job.resources import resource

# Seconds; a checkout on slow storage may take some.
_PATIENCE = 5.0


def version_text() -> str:
    """Return the version, the commit of a checkout, and the versions of the training stack if installed."""
    from qwen_job.node.versions import stack_versions

    inside = [_commit(), *(f"{name} {version}" for name, version in stack_versions().items())]
    words = ", ".join(filter(None, inside))
    return f"qwen-job {__version__}" + (f" ({words})" if words else "")


def _commit() -> str:
    """Return the commit that this checkout is at, and whether files were changed since; "" for an installed wheel."""
    root = resource()
    if not Path(root, ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= with changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "commit unknown: git does not answer"
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "commit unknown: git refuses this folder"
