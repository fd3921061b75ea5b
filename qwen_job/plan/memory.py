"""How much memory a job needs: per GPU, per host and on disk, item by item, before anything is started.

Three moments of a step can be the peak, and a GPU must hold the largest of them:

- ``loss``: all saved activations, and the logits or the chunk of them that a fused loss holds;
- ``backward``: all saved activations, and what one layer needs while its gradients are computed;
- ``optimizer``: no activations, but fp32 copies of the gradients that are being applied.

Sources: ZeRO (arXiv:1910.02054) for what is sharded; DeepSpeed 0.19's stage_1_and_2.py and stage3.py for its
buffers; tensors that autograd saves in transformers' Qwen2 and Qwen3 layers, counted
(benchmarks/bench_memory.py --cpu).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from qwen_job.plan.activations import BYTES, activation_bytes, loss_bytes
from qwen_job.plan.facts import Gpu, ModelShape
from qwen_job.resources import resource

if TYPE_CHECKING:
    from qwen_job.picture import Stack

GIB = 2**30
MASTER_BYTES, ADAM_BYTES = 4, 8
# Without CUDA's libraries and pinned buffers: torch, DeepSpeed and transformers imported are 0.4 GB.
CPU_PROCESS_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Constants:
    """What no formula gives. ``qwen-job plan --calibrate`` fits them to a cluster; defaults: see
    BENCHMARKS.md.

    ``context_bytes``: CUDA context, cuBLAS workspace and loaded kernels; ``nccl_bytes``: communicator
    buffers, when there is more than one GPU; ``fragmentation``: share of the allocated bytes that the
    allocator wastes; ``process_bytes``: host memory of one training process without its model;
    ``activation_factor``: on activations.
    """

    context_bytes: int = 400_000_000
    nccl_bytes: int = 500_000_000
    fragmentation: float = 0.045
    process_bytes: int = 4_000_000_000
    activation_factor: float = 1.0


DEFAULT_CONSTANTS = Constants()


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by item: ``gpu`` of one GPU at its ``peak``, ``host`` of one whole node, ``disk`` of the run."""

    gpu: dict[str, int]
    host: dict[str, int]
    disk: dict[str, int]
    peak: str
    moments: dict[str, int] = field(default_factory=dict)
    capacity: int | None = None

    @property
    def gpu_bytes(self) -> int:
        """Total of one GPU at the peak; 0 for a CPU job, whose memory is all in ``host``."""
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> int:
        """Total of one node."""
        return sum(self.host.values())

    @property
    def disk_bytes(self) -> int:
        """Total that the run folder takes."""
        return sum(self.disk.values())

    @property
    def stack(self) -> Stack:
        """What to draw: one GPU against its memory, or one node where there is no GPU."""
        from qwen_job.picture import Stack  # only who draws pays for it

        return Stack(self.gpu, self.capacity) if self.gpu else Stack(self.host, of="node")

    def fits(self, margin: float = 0.05) -> bool:
        """Tell whether the GPU holds it and keeps ``margin`` free; unknown memory is not judged."""
        return self.capacity is None or self.gpu_bytes <= self.capacity * (1 - margin)


def zero_settings(zero_stage: int) -> Mapping[str, Any]:
    """Return the ``zero_optimization`` block of configs/deepspeed/zeroN.json, read once."""
    return _zero_settings(zero_stage)


@lru_cache(maxsize=8)
def _zero_settings(zero_stage: int) -> dict[str, Any]:
    text = resource("configs", "deepspeed", f"zero{zero_stage}.json").read_text(encoding="utf-8")
    block: dict[str, Any] = json.loads(text)["zero_optimization"]
    return block


def model_state_bytes(
    num_parameters: int,
    *,
    zero_stage: int,
    world_size: int,
    precision: str = "bf16",
    offload_optimizer: bool = False,
    master_weights: bool = True,
) -> dict[str, int]:
    """Bytes of weights, gradients, master weights and Adam moments that one rank keeps on its GPU between
    steps.

    16 bytes a parameter in mixed precision, sharded by stage (arXiv:1910.02054, section 3): ZeRO-1 keeps 4 +
    12/N, ZeRO-2 2 + 14/N, ZeRO-3 16/N. ZeRO keeps an fp32 master copy even of fp32 weights; without ZeRO it
    does not. ``master_weights=False`` is plain half-precision AdamW: moments in the weights' type, no master.
    """
    element = BYTES[precision]
    shard = -(-num_parameters // world_size)
    gradients = num_parameters if zero_stage < 2 else shard
    optimizer = num_parameters if zero_stage == 0 else shard
    needs_master = master_weights and (precision != "fp32" or zero_stage > 0)
    if offload_optimizer:
        optimizer = gradients = 0
    return {
        "weights": element * (shard if zero_stage == 3 else num_parameters),
        "gradients": element * gradients,
        "master weights": MASTER_BYTES * optimizer if needs_master else 0,
        "optimizer": (ADAM_BYTES if master_weights else 2 * element) * optimizer,
    }


def estimate_memory(
    shape: ModelShape,
    *,
    gpu: Gpu | None = None,
    world_size: int,
    gpus_per_node: int,
    zero_stage: int,
    offload_optimizer: bool = False,
    precision: str = "bf16",
    micro_batch_size: int = 1,
    sequence_length: int = 512,
    gradient_checkpointing: bool = True,
    attention: str = "varlen",
    fused_loss: str = "torch",
    gradient_accumulation_steps: int = 2,
    master_weights: bool = True,
    fused_optimizer: bool = True,
    data_bytes: int = 0,
    save_total_limit: int = 2,
    zero: Mapping[str, Any] | None = None,
    constants: Constants = DEFAULT_CONSTANTS,
) -> MemoryEstimate:
    """Estimate the peak memory of one GPU, of one node and of the run folder, item by item, in bytes.

    ``world_size`` counts processes, one a GPU. ``zero`` is the ``zero_optimization`` block that will run, by
    default that of configs/deepspeed. ``master_weights=False`` means plain half-precision AdamW without
    DeepSpeed. ``data_bytes`` is the size of the prepared data. For a CPU job (or ``gpu=None``) see
    ``MemoryEstimate.gpu``.
    """
    settings = zero_settings(zero_stage) if zero is None else zero
    states = model_state_bytes(
        shape.num_parameters,
        zero_stage=zero_stage,
        world_size=world_size,
        precision=precision,
        offload_optimizer=offload_optimizer,
        master_weights=master_weights,
    )
    tokens = micro_batch_size * sequence_length
    activations = activation_bytes(
        shape,
        tokens,
        sequence_length,
        precision=precision,
        attention=attention,
        gradient_checkpointing=gradient_checkpointing,
    )
    moments = _moments(
        states,
        {item: int(constants.activation_factor * size) for item, size in activations.items()},
        loss_bytes(shape, tokens, fused_loss, precision),
        _buffers(shape, settings, zero_stage, world_size, precision, offload_optimizer) if master_weights else {},
        0
        if offload_optimizer
        else _step_bytes(shape, settings, zero_stage, world_size, precision, master_weights, fused_optimizer),
        keeps_gradients=gradient_accumulation_steps > 1 or zero_stage == 3,
    )
    totals = {moment: sum(items.values()) for moment, items in moments.items()}
    peak = max(totals, key=lambda moment: totals[moment])
    device = moments[peak]
    ranks = min(gpus_per_node, world_size)
    host = _host(shape, zero_stage, precision, world_size, ranks, offload_optimizer, data_bytes, constants)
    if gpu is not None and gpu.is_cpu:
        host.update({item: ranks * size for item, size in device.items()}, **{"loading the weights": 0})
        host["processes"] = ranks * min(CPU_PROCESS_BYTES, constants.process_bytes)
        device = {}
    else:
        device["fragmentation"] = int(constants.fragmentation * totals[peak])
        device["CUDA context"] = constants.context_bytes
        device["NCCL"] = constants.nccl_bytes if world_size > 1 else 0
    return MemoryEstimate(
        gpu={item: size for item, size in device.items() if size},
        host={item: size for item, size in host.items() if size},
        disk=_disk(shape, precision, save_total_limit, data_bytes),
        peak=peak,
        moments=totals,
        capacity=None if gpu is None else gpu.memory_bytes,
    )


def _moments(
    states: Mapping[str, int],
    activations: Mapping[str, int],
    loss: int,
    buffers: Mapping[str, int],
    step: int,
    *,
    keeps_gradients: bool,
) -> dict[str, dict[str, int]]:
    """Items that a GPU holds at each moment of a step.

    Gradients of earlier micro-batches stay (``keeps_gradients``); in the only micro-batch of a step they appear
    while activations go, so that the start or the end of backward is the peak, never both at once.
    """
    without = {**states, "gradients": states["gradients"] if keeps_gradients else 0}
    saved, working = activations["saved"], activations["working"]
    start = {**without, **buffers, "activations": saved, "one layer's backward": working}
    end = {**states, **buffers, "one layer's backward": working}
    return {
        "loss": {**without, **buffers, "activations": saved, "logits and loss": loss},
        "backward": max(start, end, key=lambda items: sum(items.values())),
        "optimizer": {**states, "optimizer's temporaries": step},
    }


def _buffers(
    shape: ModelShape,
    zero: Mapping[str, Any],
    zero_stage: int,
    world_size: int,
    precision: str,
    offload_optimizer: bool,
) -> dict[str, int]:
    """DeepSpeed's buffers during backward: reduce buckets, gathered weights and the offload's staging buffer.

    ZeRO-1 and 2 have two buckets when communication overlaps, ZeRO-3 always one; a parameter larger than a bucket
    (Qwen's embedding and head) is reduced by itself. ZeRO-3 gathers at most ``stage3_max_live_parameters``,
    prefetched ones among them; it never shards norms and biases. Offload stages the largest gradient.
    """
    if zero_stage == 0:
        return {}
    element, total = BYTES[precision], shape.num_parameters
    bucket, largest = int(zero["reduce_bucket_size"]), shape.vocab_size * shape.hidden_size
    copies = 2 if zero_stage < 3 and zero.get("overlap_comm") else 1
    buckets = copies * min(bucket, total) + (largest if largest > bucket else 0)
    buffers = {"reduce buckets": element * buckets}
    if zero_stage == 3 and world_size > 1:
        live = int(zero["stage3_max_live_parameters"])
        layers = shape.num_hidden_layers * (shape.layer_parameters - shape.layer_matmul_parameters)
        unsharded = layers + shape.hidden_size
        buffers["gathered weights"] = element * (min(max(live, largest), total) + unsharded)
    if offload_optimizer and zero_stage < 3:
        buffers["offload staging"] = element * largest
    return buffers


def _step_bytes(
    shape: ModelShape,
    zero: Mapping[str, Any],
    zero_stage: int,
    world_size: int,
    precision: str,
    master_weights: bool,
    fused_optimizer: bool,
) -> int:
    """Temporaries of the optimizer step on the GPU, beside the gradients.

    ZeRO makes a flat copy of this rank's gradients and its fp32 version, ZeRO-3 one ``sub_group_size`` at a time; in
    fp32 the flat copy is the only one, without ZeRO the fp32 version is. An AdamW that is not fused holds one more
    temporary of the moments' size; the flat copy is gone by then.
    """
    element, total = BYTES[precision], shape.num_parameters
    if not master_weights:
        return 0 if fused_optimizer else element * total
    if zero_stage == 0:
        return (4 * total if element < 4 else 0) + (0 if fused_optimizer else 4 * total)
    shard = -(-total // world_size)
    if zero_stage == 3:
        shard = min(shard, int(zero["sub_group_size"]))
    flat = element if element < 4 else 0
    return (4 + max(flat, 0 if fused_optimizer else 4)) * shard


def _host(
    shape: ModelShape,
    zero_stage: int,
    precision: str,
    world_size: int,
    ranks: int,
    offload_optimizer: bool,
    data_bytes: int,
    constants: Constants,
) -> dict[str, int]:
    """Host memory of one node with ``ranks`` processes.

    An offloaded optimizer keeps master weights 4, moments 8 and fp32 gradients 4 bytes a parameter, 16-bit
    accumulated gradients and (ZeRO-1 and 2) pinned 16-bit weights, each sharded over all ranks. While weights load,
    every process holds one copy in the working type.
    """
    element, total = BYTES[precision], shape.num_parameters
    shard = -(-total // world_size)
    host = {"processes": ranks * constants.process_bytes, "data and page cache": data_bytes}
    kept = 0
    if offload_optimizer:
        staging = element * shape.vocab_size * shape.hidden_size if zero_stage < 3 else 0
        host["offloaded optimizer"] = ranks * shard * (MASTER_BYTES + ADAM_BYTES)
        host["offloaded gradients"] = ranks * shard * (4 + element)
        host["pinned weights"] = ranks * (shard * element if zero_stage < 3 else 0)
        host["offload staging"] = ranks * staging
        kept = ranks * (shard * (MASTER_BYTES + ADAM_BYTES + 4 + element))
    host["loading the weights"] = max(0, ranks * element * total - kept)
    return host


def _disk(shape: ModelShape, precision: str, save_total_limit: int, data_bytes: int) -> dict[str, int]:
    """Disk of a run: every kept checkpoint, and one more while it is written."""
    checkpoint = shape.num_parameters * (BYTES[precision] + MASTER_BYTES + ADAM_BYTES)
    return {
        "checkpoints": checkpoint * (save_total_limit + 1),
        "model": shape.num_parameters * BYTES[precision],
        "prepared data": data_bytes,
    }
