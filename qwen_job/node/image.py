"""Describe the image on this node (image.json, written by the build), and the image sets that can be built."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qwen_job import strict_json
from qwen_job.errors import EnvironmentFault
from qwen_job.facts import fact
from qwen_job.node.versions import torch_cuda

IMAGE_FILE = "/opt/image/image.json"


@dataclass(frozen=True)
class Image:
    """``architectures``: such as ``sm_80`` (compiled code) and ``compute_90`` (PTX); None outside an image."""

    set: str | None
    cuda: str | None
    minimum_driver: str | None
    architectures: tuple[str, ...] | None

    @property
    def cuda_major(self) -> int:
        return int((self.cuda or "0").split(".")[0])

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Return whether the image has kernels for a GPU of this compute capability.

        Compiled code runs on its major generation from its minor number up, PTX on everything newer
        (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").
        """
        if self.architectures is None:
            return True
        return any(_runs(name, capability) for name in self.architectures)

    def carried(self) -> str:
        return ", ".join(name for name in self.architectures or () if name.startswith("sm_")) or "no GPU kernels"


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    kind, _, digits = architecture.partition("_")
    major, minor = int(digits[:-1]), int(digits[-1])
    if kind == "compute":
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]


def _image(values: dict[str, Any], name: str | None) -> Image:
    return Image(name, values["cuda"], values["minimum_driver"], tuple(values["architectures"]))


def installed_image() -> Image:
    """Return the image that this process runs in; outside an image, only the CUDA version of torch is known."""
    path = Path(os.environ.get("QWEN_JOB_IMAGE", IMAGE_FILE))
    if not path.exists():
        cuda = torch_cuda()
        minimum = next((i.minimum_driver for i in image_sets() if i.cuda and i.cuda == cuda), None)
        return Image(None, cuda, minimum, None)
    try:
        values = strict_json.load(path)
        return _image(values, values["set"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(f"{path}: is not an image description ({error}): rebuild the image") from error


def image_sets() -> list[Image]:
    """Return the sets that ``make image SET=...`` can build."""
    found = []
    for path in sorted(fact("image").glob("*/set.yaml")):
        values = yaml.safe_load(path.read_text())
        found.append(_image(values, values["name"]))
    return found


def set_for(capability: tuple[int, int]) -> str | None:
    """Return the best set for a GPU: one that was compiled for it, else one that runs through PTX."""
    best = best_of(image_sets(), capability)
    return best.set if best else None


def best_of(images: Sequence[Image], capability: tuple[int, int] | None) -> Image | None:
    """Return the first image that was compiled for a GPU, else the first that runs there; None if none does.

    Of a GPU whose capability is not known (None), the first image.
    """
    if capability is None:
        return next(iter(images), None)
    fitting = [image for image in images if image.runs_on(capability)]
    compiled = [i for i in fitting if any(_runs(a, capability) for a in i.architectures or () if a.startswith("sm_"))]
    return next(iter(compiled or fitting), None)
