"""Environment variables of the training processes, by device and network."""

from __future__ import annotations

from collections.abc import Mapping

from qwen_job.facts.hardware import Gpu
from qwen_job.job import Job


def environment(job: Job, gpu: Gpu, interconnect: str) -> dict[str, str]:
    """Return the presets overridden by the job's own ``env``, sorted by name."""
    env = {
        "OMP_NUM_THREADS": str(job.cluster.cpus_per_gpu or (1 if gpu.is_cpu else 8)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not gpu.is_cpu:
        env |= {
            "CUDA_DEVICE_MAX_CONNECTIONS": "1",
            "NCCL_DEBUG": "WARN",
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
            "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
            "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        }
        if job.cluster.nodes > 1:
            env |= _network(job, interconnect)
    if job.cluster.socket_interface:
        # The nodes put the interface's own name in its place (sockets.py).
        env["GLOO_SOCKET_IFNAME"] = job.cluster.socket_interface
    return dict(sorted((env | job.env).items()))


def segments_grow(env: Mapping[str, str]) -> bool:
    """Tell whether the segments of torch's allocator can grow: by the presets, unless a job's ``env`` replaces them."""
    written = env.get("PYTORCH_ALLOC_CONF") or env.get("PYTORCH_CUDA_ALLOC_CONF")
    return written is None or "expandable_segments:true" in written.replace(" ", "").lower()


def _network(job: Job, interconnect: str) -> dict[str, str]:
    # Left to itself NCCL takes InfiniBand's interfaces first, and lo and docker's last.
    env = {"NCCL_SOCKET_IFNAME": job.cluster.socket_interface} if job.cluster.socket_interface else {}
    if interconnect == "ethernet":
        env["NCCL_IB_DISABLE"] = "1"
    if interconnect == "efa":
        env |= {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1"}
    if job.cluster.ib_hca:
        env["NCCL_IB_HCA"] = job.cluster.ib_hca
    return env
