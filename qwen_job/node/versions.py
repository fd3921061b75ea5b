"""Read the versions of the training stack from package metadata: importing torch would take seconds."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# CUDA 13 packages carry no suffix, or -cu13; those of CUDA 12 carry -cu12.
_NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12", "nvidia-nccl")
_CUDA_LINE = re.compile(r"^cuda\b[^=]*= *(?:'([^']+)'|None)", re.M)


def stack_versions() -> dict[str, str]:
    """Return the installed versions, e.g. ``{"torch": "2.13.0", "CUDA": "13.0", "NCCL": "2.28.9", "DeepSpeed": ...}``.

    A package that is not installed is omitted; on a login node with the launcher only, that is all of them.
    """
    found = {
        "torch": _version("torch"),
        "CUDA": torch_cuda(),
        "NCCL": next(filter(None, map(_version, _NCCL)), None),
        "DeepSpeed": _version("deepspeed"),
        "transformers": _version("transformers"),
    }
    return {name: number for name, number in found.items() if number}


def torch_cuda() -> str | None:
    """Return the CUDA that the installed torch was built for, e.g. ``13.0``; None for a CPU build or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    generated = Path(spec.origin).with_name("version.py")
    match = _CUDA_LINE.search(generated.read_text()) if generated.is_file() else None
    return match.group(1) if match else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
