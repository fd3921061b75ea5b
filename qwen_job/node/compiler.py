"""Whether kernels can be compiled while a job runs: Triton and Inductor need a C compiler and Python's headers."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

from qwen_job.errors import EnvironmentFault


def needs_compiler(torch_compile: bool, fused_loss: str) -> str | None:
    """Return the setting of the job that compiles kernels at run time; None when nothing does."""
    if torch_compile:
        return "torch_compile: true"
    return "fused_loss: liger" if fused_loss == "liger" else None


def require_compiler(setting: str, device: str) -> None:
    """Raise EnvironmentFault, naming ``setting``, unless this machine can compile what it needs.

    On a GPU that is Triton's C launcher; on a CPU Inductor's C++ (``CC`` and ``CXX`` name other compilers).
    """
    names = ("gcc", "clang", "cc") if device == "cuda" else ("g++", "clang++", "c++")
    own = os.environ.get("CC" if device == "cuda" else "CXX", "")
    command = shlex.split(own)[0] if own.strip() else None
    if not any(map(shutil.which, [command] if command else names)):
        raise EnvironmentFault(f"{setting} compiles kernels while the job runs, {_remedy(f'{names[0]} is missing')}")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise EnvironmentFault(f"{setting} compiles kernels while the job runs, {_remedy('Python.h is missing')}")


def _remedy(what: str) -> str:
    return (
        f"and {what} here: take an image built with 'make image WITH_COMPILER=1' (elsewhere install g++ and "
        "libpython3-dev), or leave the setting out"
    )
