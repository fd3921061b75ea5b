"""Which extra brings a package that a command has not found."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from qwen_job.errors import EnvironmentFault

_WORDS = {"train": "torch 'qwen-job[train]' (training, chat, evaluate)", "data": "'qwen-job[data]' (data commands)"}
# Extras for those who change qwen-job.
_OURS = ("check", "test")
_OF_AN_EXTRA = re.compile(r"([A-Za-z0-9._-]+)[^;]*; *extra *== *['\"](\w+)['\"]")


def absent(error: ModuleNotFoundError) -> EnvironmentFault | None:
    """Return what to install for a missing package; None for one that no extra brings, which is a fault of ours."""
    module = str(error.name).partition(".")[0]
    if not (names := extras(module)):
        return None
    choices = " or ".join("pip install " + _WORDS.get(name, f"'qwen-job[{name}]'") for name in names)
    return EnvironmentFault(
        f"this command needs {module}, which is not installed in {sys.executable}: {choices}; or run the command where "
        "jobs train: in the image, or with slurm.python, hostfile.python or local.python"
    )


def extras(module: str) -> list[str]:
    """Return the extras of the installed qwen-job that bring ``module``, as its metadata has them."""
    found = []
    for line in metadata.requires("qwen-job") or ():
        match = _OF_AN_EXTRA.match(line)
        if match and match[1].replace("-", "_").lower() == module and match[2] not in _OURS:
            found.append(match[2])
    return found
