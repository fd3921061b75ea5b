"""What a launcher looks at before it imports torch: driver, GPUs, cache, and a compiler where the job needs one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job import strict_yaml
from qwen_job.node.compiler import needs_compiler, require_compiler
from qwen_job.node.image import installed_image
from qwen_job.node.quick_check import require


def check_start(command: Sequence[str]) -> None:
    """Raise EnvironmentFault where this node cannot run ``command``, the arguments of ``python -m qwen_job.train``.

    The device stands in train.yaml. With the reference's flags it does not: the image's own decides, and outside an
    image nothing is known.
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
    """Return train.yaml, {} for flags, None for a file that only the trainer can say what is wrong with."""
    if command[:1] != ["--config"]:
        return {}
    try:
        found = strict_yaml.load(Path(command[1]))
    except (OSError, ValueError, LookupError):
        return None
    return found if isinstance(found, dict) else None
