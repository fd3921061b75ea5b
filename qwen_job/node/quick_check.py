"""The quick check of a node, before torch is imported: driver, GPU kernels, cache, shared memory.

Every fault is one line with its fix, instead of a traceback from torch later.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwen_job.errors import EnvironmentFault
from qwen_job.node.driver import Driver, NodeGpu, probe
from qwen_job.node.image import Image, best_of, image_sets, installed_image, set_for
from qwen_job.resources import user_cache
from qwen_job.text import GIB, gib

SHARED_MEMORY = Path("/dev/shm")
# Docker's default of 64 MB is too little for NCCL's intra-node transport and for DataLoader workers.
ENOUGH_SHARED_MEMORY = GIB


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. ``state``: ok, warning or fault; ``value``: the measured figure."""

    check: str
    state: str
    message: str
    value: float | None = None


def quick_check(device: str = "auto") -> list[CheckResult]:
    """Check this node; a fault is returned, not raised.

    ``device``: ``cuda`` (needs a GPU), ``cpu`` (needs none), or ``auto`` (what the image was built for).
    """
    image = installed_image()
    wants_gpu = device == "cuda" or (device == "auto" and image.cuda is not None)
    checks: list[tuple[str, Callable[[], str]]] = [("gpu", lambda: check_gpus(image))] if wants_gpu else []
    checks.append(("cache", check_cache))
    found = [_run_check(name, check) for name, check in checks]
    return [*found, shared_memory(SHARED_MEMORY)]


def require(device: str = "auto") -> None:
    """Check this node before torch is imported; ``device`` as in :func:`quick_check`.

    Outside an image the cache is not checked, because a job may name its own.

    Raises:
        EnvironmentFault: the first fault.
    """
    image = installed_image()
    if device == "cuda" or (device == "auto" and image.cuda is not None):
        check_gpus(image)
    if image.set is not None:
        check_cache()


def check_gpus(image: Image) -> str:
    """Compare the node's driver and GPUs with the image; return a summary.

    Raises:
        EnvironmentFault: the driver is missing or too old for the image's CUDA, or a GPU has no kernels.
    """
    if image.cuda is None and image.set is None:
        raise EnvironmentFault(
            "the job asks for GPUs, and this Python's torch has no CUDA: install a CUDA build of torch, or write "
            "cluster.gpu: CPU to train on this machine's processors"
        )
    if image.cuda is None:
        raise EnvironmentFault(
            "this image carries no CUDA (torch for CPUs): use SET=ampere (A100, H100) or SET=v100, or device cpu"
        )
    driver = probe()
    check_driver(image, driver)
    for gpu in driver.gpus:
        check_kernels(image, gpu)
    return f"{len(driver.gpus)} x {driver.gpus[0].name}, driver {driver.version or 'unknown'}, CUDA {image.cuda} inside"


def check_driver(image: Image, driver: Driver) -> None:
    """Check that the driver is new enough for the image's CUDA.

    Raises:
        EnvironmentFault: it is older.
    """
    needed = f"this image carries CUDA {image.cuda}, which needs driver {image.minimum_driver} or newer"
    if driver.version and image.minimum_driver:
        if _numbers(driver.version) < _numbers(image.minimum_driver):
            raise EnvironmentFault(f"{needed}; the node has {driver.version}: {_older_set(image, driver)}")
    elif driver.cuda and driver.cuda[0] < image.cuda_major:
        had = ".".join(map(str, driver.cuda))
        raise EnvironmentFault(f"{needed}; the node's driver supports up to CUDA {had}: update the driver")


def check_kernels(image: Image, gpu: NodeGpu) -> None:
    """Check that the image has kernels for this GPU.

    Raises:
        EnvironmentFault: it has none.
    """
    if gpu.capability is None or image.runs_on(gpu.capability):
        return
    name = gpu.name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    sm = "sm_{}{}".format(*gpu.capability)
    better = set_for(gpu.capability)
    advice = f"use SET={better}" if better else "no set has kernels for it: exclude this node"
    raise EnvironmentFault(f"this image carries {image.carried()}; the node has {name} ({sm}): {advice}")


def check_cache() -> str:
    """Check that the cache folder (QWEN_JOB_CACHE) is writable; return a message with its path.

    Raises:
        EnvironmentFault: it is not.
    """
    folder = user_cache()
    trial = folder / f".trial-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise EnvironmentFault(
            f"the cache {folder} is not writable ({error.strerror}): mount a writable folder there, "
            "or set QWEN_JOB_CACHE to one"
        ) from error
    return f"{folder} is writable"


def shared_memory(folder: Path) -> CheckResult:
    """Warn if shared memory is small; a job with one GPU and no workers still runs."""
    if not folder.is_dir():
        return CheckResult("shared memory", "warning", f"{folder} does not exist: NCCL needs it between GPUs of a node")
    size = shutil.disk_usage(folder).total
    if size < ENOUGH_SHARED_MEMORY:
        text = f"{folder} holds {size >> 20} MiB: NCCL and data workers need 1 GiB or more (docker: --ipc=host)"
        return CheckResult("shared memory", "warning", text)
    return CheckResult("shared memory", "ok", gib(size))


def _run_check(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, "ok", check())
    except EnvironmentFault as fault:
        return CheckResult(name, "fault", str(fault))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _older_set(image: Image, driver: Driver) -> str:
    """Return what to do where the driver is older than the image: a set that runs on it and on the GPUs, if any."""
    version = _numbers(driver.version or "")
    older = [i for i in image_sets() if i.minimum_driver and _numbers(i.minimum_driver) <= version]
    capability = next((gpu.capability for gpu in driver.gpus if gpu.capability), None)
    best = best_of([i for i in older if i.cuda_major < image.cuda_major], capability)
    return f"update the driver or use SET={best.set} (CUDA {best.cuda})" if best else "update the driver"
