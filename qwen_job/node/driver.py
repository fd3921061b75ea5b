"""Query the NVIDIA driver and the GPUs of this node without torch: by nvidia-smi, or by libcuda if that is missing."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from dataclasses import dataclass

from qwen_job.errors import EnvironmentFault

_QUERY = "index,name,compute_cap,driver_version"
# Without persistence mode, nvidia-smi has to initialise eight GPUs.
_TIMEOUT_SECONDS = 90
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute in cuda.h
# CUresult in cuda.h -> the cause, and what a cluster admin can do.
_CUDA_ERRORS = {
    3: "the driver could not be initialised",
    100: "the driver sees no GPU: was the container started with GPUs, and is CUDA_VISIBLE_DEVICES right?",
    802: "the NVSwitch fabric is not ready: start nvidia-fabricmanager on the node",
    803: "the container's CUDA compatibility library does not match the node's driver",
    999: "the driver reports an unknown error: see dmesg for Xid errors",
}
_NO_DRIVER = (
    "no NVIDIA driver: start the container with GPUs (docker --gpus all, podman --device nvidia.com/gpu=all, "
    "apptainer --nv, nvidia.com/gpu in Kubernetes), or install the driver on the node"
)


@dataclass(frozen=True)
class NodeGpu:
    index: int
    name: str
    capability: tuple[int, int] | None  # None: the driver is too old to report it (before 510)


@dataclass(frozen=True)
class Driver:
    """``version``: such as ``580.65.06``, None if only libcuda is mounted; ``cuda``: the newest supported CUDA."""

    version: str | None
    cuda: tuple[int, int] | None
    gpus: tuple[NodeGpu, ...]


def probe() -> Driver:
    """Query this node's driver.

    Raises:
        EnvironmentFault: there is no driver, it does not respond, or it sees no GPU.
    """
    if shutil.which("nvidia-smi") is None:
        return _probe_libcuda()
    driver = _probe_nvidia_smi()
    if _libcuda() is None:
        raise EnvironmentFault(
            "found nvidia-smi but not libcuda.so.1: NVIDIA_DRIVER_CAPABILITIES must contain 'compute'"
        )
    return driver


def _probe_nvidia_smi() -> Driver:
    code, text = _nvidia_smi(f"--query-gpu={_QUERY}", "--format=csv,noheader")
    if code and "compute_cap" in text:
        code, text = _nvidia_smi(f"--query-gpu={_QUERY.replace('compute_cap', 'uuid')}", "--format=csv,noheader")
    if code:
        raise EnvironmentFault(f"nvidia-smi failed: {_one_line(text) or f'exit code {code}'}")
    return parse_query(text)


def parse_query(text: str) -> Driver:
    """Parse the output of ``nvidia-smi --query-gpu=index,name,compute_cap,driver_version --format=csv,noheader``."""
    gpus, version = [], None
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not fields[0].isdigit():
            raise EnvironmentFault(f"nvidia-smi printed {line!r} instead of a GPU: run nvidia-smi on the node")
        capability = re.fullmatch(r"(\d+)\.(\d+)", fields[2])
        number = (int(capability[1]), int(capability[2])) if capability else None
        gpus.append(NodeGpu(int(fields[0]), fields[1], number))
        version = fields[3]
    if not gpus:
        raise EnvironmentFault(f"nvidia-smi sees no GPU: {_CUDA_ERRORS[100]}")
    return Driver(version, None, tuple(gpus))


def _nvidia_smi(*arguments: str) -> tuple[int, str]:
    command = ["nvidia-smi", *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"nvidia-smi did not respond within {_TIMEOUT_SECONDS} s: the driver hangs") from None
    except OSError as error:
        raise EnvironmentFault(f"nvidia-smi cannot be run: {error.strerror}") from error
    return run.returncode, run.stdout if run.returncode == 0 else run.stdout + run.stderr


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _libcuda() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def _probe_libcuda() -> Driver:
    library = _libcuda()
    if library is None:
        raise EnvironmentFault(_NO_DRIVER)
    _call(library, "cuInit", 0)
    version, count = ctypes.c_int(), ctypes.c_int()
    _call(library, "cuDriverGetVersion", ctypes.byref(version))
    _call(library, "cuDeviceGetCount", ctypes.byref(count))
    gpus = tuple(_device(library, index) for index in range(count.value))
    return Driver(None, (version.value // 1000, version.value % 1000 // 10), gpus)


def _device(library: ctypes.CDLL, index: int) -> NodeGpu:
    name = ctypes.create_string_buffer(100)
    _call(library, "cuDeviceGetName", name, len(name), index)
    numbers = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int()
        _call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, index)
        numbers.append(value.value)
    return NodeGpu(index, name.value.decode(errors="replace"), (numbers[0], numbers[1]))


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    code: int = getattr(library, function)(*arguments)
    if code:
        raise EnvironmentFault(f"{function} failed ({code}): {_CUDA_ERRORS.get(code, 'see CUresult in cuda.h')}")
