"""What this machine has for code that is compiled while a job runs: torch.compile's kernels and Liger's."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

from qwen_job.errors import EnvironmentFault

_REMEDY = (
    "use the image of a set that has a compiler (ampere has; others: make image WITH_COMPILER=1; outside images "
    "install g++ and libpython3-dev)"
)


def refuse_without_compiler(torch_compile: object, fused_loss: object, device: str) -> None:
    """Refuse settings that compile kernels as a job runs, where nothing can be compiled; ``auto`` is none of them.

    Raises:
        EnvironmentFault: the compiler or a header is missing.
    """
    setting = "torch_compile: true" if torch_compile is True else "fused_loss: liger" if fused_loss == "liger" else ""
    if setting and (what := missing_tool(device)):
        raise EnvironmentFault(f"train.{setting}: {what}: {_REMEDY}, or remove the line")


def missing_tool(device: str) -> str:
    """Return what is missing to compile kernels for ``device`` (cuda or cpu), such as "gcc is missing"; "" if nothing.

    On a GPU, Triton compiles C; on a CPU, Inductor compiles C++. ``CC`` and ``CXX`` override the compiler.
    """
    names = ("gcc", "clang", "cc") if device == "cuda" else ("g++", "clang++", "c++")
    own = os.environ.get("CC" if device == "cuda" else "CXX", "")
    command = shlex.split(own)[0] if own.strip() else None
    if not any(map(shutil.which, [command] if command else names)):
        return f"{command or names[0]} is missing"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h is missing"
    return ""
