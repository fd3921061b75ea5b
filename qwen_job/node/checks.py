"""Check a node before torch is imported: driver, GPUs, cache, and the compiler if the job needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job import strict_yaml
from qwen_job.node.image import installed_image
from qwen_job.node.quick_check import require
from qwen_job.toolchain import refuse_without_compiler


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
