"""Check a node before torch is imported: driver, GPUs, cache, and the compiler if the job needs one."""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job import strict_yaml
from qwen_job.errors import EnvironmentFault
from qwen_job.node.image import installed_image
from qwen_job.node.quick_check import require


def check_start(command: Sequence[str]) -> None:
    """Check that this node can run ``command``, the arguments of ``python -m qwen_job.train``.

    train.yaml names the device. The flags of finetune.py do not: then the image decides, and outside an image nothing
    is checked.

    Raises:
        EnvironmentFault: it cannot.
    """
    settings = _settings(command)
    if settings is None:
        return
    device = settings.get("device")
    if device not in ("cuda", "cpu"):
        image = installed_image()
        if image.set is None:
            return
        device = "cuda" if image.cuda else "cpu"
    require(device)
    compiling = needs_compiler(settings.get("torch_compile") is True, str(settings.get("fused_loss")))
    if compiling:
        require_compiler(compiling, device)


def _settings(command: Sequence[str]) -> dict[str, Any] | None:
    """Return train.yaml, {} for flags, or None for an invalid file, which the trainer reports."""
    if command[:1] != ["--config"]:
        return {}
    try:
        found = strict_yaml.load(Path(command[1]))
    except (OSError, ValueError, LookupError):
        return None
    return found if isinstance(found, dict) else None


def needs_compiler(torch_compile: bool, fused_loss: str) -> str | None:
    """Return the setting that compiles kernels during training, None if there is none."""
    if torch_compile:
        return "torch_compile: true"
    return "fused_loss: liger" if fused_loss == "liger" else None


def require_compiler(setting: str, device: str) -> None:
    """Check for the compiler and the headers that ``setting`` needs.

    On a GPU, Triton compiles C; on a CPU, Inductor compiles C++. ``CC`` and ``CXX`` override the compiler.

    Raises:
        EnvironmentFault: one of them is missing.
    """
    names = ("gcc", "clang", "cc") if device == "cuda" else ("g++", "clang++", "c++")
    own = os.environ.get("CC" if device == "cuda" else "CXX", "")
    command = shlex.split(own)[0] if own.strip() else None
    if not any(map(shutil.which, [command] if command else names)):
        raise EnvironmentFault(f"{setting} compiles kernels during training, {_remedy(f'{names[0]} is missing')}")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise EnvironmentFault(f"{setting} compiles kernels during training, {_remedy('Python.h is missing')}")


def _remedy(what: str) -> str:
    return (
        f"but {what}: use an image built with 'make image WITH_COMPILER=1' (elsewhere install g++ and "
        "libpython3-dev), or remove the setting"
    )
