"""The release that this copy of qwen-job is, and its images by digest; release.yaml holds both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from qwen_job import __version__
from qwen_job.errors import EnvironmentFault
from qwen_job.facts import fact
from qwen_job.facts.lookup import read_facts

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Release(NamedTuple):
    """``commit``: what it was built from; ``image``: the images' name without a tag; ``digests``: by image set."""

    commit: str
    image: str
    digests: Mapping[str, str]


def release() -> Release | None:
    """Return the release that this copy is; None for a checkout.

    Raises:
        EnvironmentFault: release.yaml belongs to another version.
    """
    path = fact("release.yaml")
    values = read_facts(path)
    if values["version"] is None:
        return None
    if values["version"] != __version__:
        message = f"is of version {values['version']}, and this is {__version__}; install qwen-job again"
        raise EnvironmentFault(f"{path}: {message}")
    return Release(values["commit"], values["image"], values["digests"])


def chart_address() -> str:
    """Return where releases have the chart of this version, beside their images: words for ``helm install``."""
    owner = str(read_facts(fact("release.yaml"))["image"]).rpartition("/")[0]
    return f"oci://{owner}/charts/qwen-job --version {__version__}"


def released_image(image_set: str) -> str | None:
    """Return the released image of a set (ampere, v100, cpu) by its digest, NAME@sha256:...; None in a checkout.

    Raises:
        EnvironmentFault: the release has no digest for it.
    """
    found = release()
    if found is None:
        return None
    digest = found.digests.get(image_set)
    if not _DIGEST.fullmatch(str(digest)):
        message = f"digests.{image_set}: {digest!r} is no digest, so version {__version__} has no image for this GPU"
        raise EnvironmentFault(f"{fact('release.yaml')}: {message}; install qwen-job again")
    return f"{found.image}@{digest}"
