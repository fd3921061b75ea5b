"""Notes for what a job says and its target does not use."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_job.job.document import Path as FieldPath
from qwen_job.job.document import dotted
from qwen_job.plan import Plan

_TIME: FieldPath = ("evaluate", "time")
_CONTAINER: tuple[FieldPath, ...] = (("image",), ("container",))
_COUNTS: tuple[FieldPath, ...] = (("retry", "max_retries"), ("retry", "max_without_progress"))
# Sections and fields without effect on a target; evaluate has its own note.
_UNUSED: dict[str, tuple[FieldPath, ...]] = {
    "slurm": (("kubernetes",), ("hostfile",), ("local",)),
    "kubernetes": (("slurm",), ("hostfile",), ("local",), ("container",), ("retry", "max_retries")),
    "helm": (("slurm",), ("hostfile",), ("local",), ("container",), ("retry", "max_retries")),
    "kubeflow": (_TIME, ("slurm",), ("hostfile",), ("local",), ("container",), ("retry", "max_retries")),
    "hostfile": (_TIME, ("slurm",), ("kubernetes",), ("local",), *_CONTAINER, *_COUNTS),
    "local": (_TIME, ("slurm",), ("kubernetes",), ("hostfile",), *_CONTAINER, *_COUNTS),
}
_NEED_A_RUNTIME: tuple[FieldPath, ...] = (
    ("image",), ("container", "image"), ("container", "mounts"), ("container", "options"), ("container", "mount_home"),
)  # fmt: skip
_PYTHON = {"slurm": "slurm.python", "hostfile": "hostfile.python", "local": "local.python"}


def unused_notes(plan: Plan, target: str) -> Iterator[str]:
    """Yield a note for the sections without effect on ``target``, and one for an image that nothing starts."""
    written = [dotted(path) for path in _UNUSED[target] if plan.job.wrote(*path)]
    if written:
        yield f"{', '.join(written)}: not used on {target}" + _instead(written, target)
    if target == "slurm" and plan.job.container.runtime == "none":
        idle = [dotted(path) for path in _NEED_A_RUNTIME if plan.job.wrote(*path)]
        if idle:
            fix = "to run in the image, set container.runtime: pyxis, apptainer, podman, docker or charliecloud"
            yield f"{', '.join(idle)}: not used, because container.runtime is none and slurm.python runs; {fix}"


def _instead(written: list[str], target: str) -> str:
    """Say what runs in place of an image, where the job asks for one."""
    if target not in _PYTHON or not {"image", "container"} & set(written):
        return ""
    return f", which starts {_PYTHON[target]} without a container; images run on slurm, kubernetes and helm"
