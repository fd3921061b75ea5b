"""Check a node before torch is imported: driver, GPUs, cache, the training stack, and the compiler if needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qwen_job import strict_yaml
from qwen_job.errors import EnvironmentFault
from qwen_job.node.image import installed_image
from qwen_job.node.quick_check import require
from qwen_job.toolchain import refuse_without_compiler

_STACK = ("torch", "transformers", "deepspeed")


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
    if absent := [name for name in _STACK if find_spec(name) is None]:
        raise EnvironmentFault(
            f"{sys.executable} has no {', '.join(absent)}: pip install torch 'qwen-job[train]' with it, choose another "
            "Python (slurm.python, hostfile.python, local.python), or run the job in the image"
        )
    refuse_without_compiler(settings.get("torch_compile"), settings.get("fused_loss"), device)


def _settings(command: Sequence[str]) -> dict[str, Any] | None:
    """Return train.yaml, {} for flags, or None for an invalid file, which the trainer reports."""
    if command[:1] != ["--config"]:
        return {}
    try:
        found = strict_yaml.load(Path(command[1]))
    except (OSError, ValueError, LookupError):
        return None
    return found if isinstance(found, dict) else None
