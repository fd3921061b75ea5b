"""Estimate the memory of a job: per GPU, per node and on disk, item by item.

A step has three possible peaks, and the largest must fit in GPU memory:

- ``loss``: all saved activations, and the logits (or one chunk of them with a fused loss);
- ``backward``: all saved activations, and one layer's working memory while its gradients are computed;
- ``optimizer``: no activations, but fp32 copies of the gradients that are being applied.

Sources: ZeRO (arXiv:1910.02054) for sharding; DeepSpeed 0.19's stage_1_and_2.py and stage3.py for its buffers; a
count of the tensors that autograd saves in transformers' Qwen layers (benchmarks/bench_memory.py --cpu).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen_job.facts import fact
from qwen_job.facts.choices import Export
from qwen_job.facts.hardware import Gpu
from qwen_job.plan.estimate.activations import activation_bytes, loss_bytes, offloaded_bytes
from qwen_job.plan.estimate.layout import BYTES, Layout

if TYPE_CHECKING:
    from qwen_job.picture import Stack

MASTER_BYTES, ADAM_BYTES = 4, 8
CHECKPOINT_COPY = "checkpoint copy"
STATES_IN_MEMORY = "states in memory"
SECOND_COPY = "second copy at the end"
PREPARED_DATA = "prepared data"


@dataclass(frozen=True)
class Constants:
    """Constants from measurements. ``qwen-job plan --calibrate`` fits some to a cluster; defaults: see BENCHMARKS.md.

    ``context_bytes``: CUDA context, cuBLAS workspace and loaded kernels; ``nccl_bytes``: communicator
    buffers, with more than one GPU; ``fragmentation``: share of the allocated bytes that the
    allocator wastes; ``process_bytes``: host memory of one training process without its model;
    ``activation_factor``: multiplies activations.
    """

    context_bytes: int = 400_000_000
    nccl_bytes: int = 500_000_000
    fragmentation: float = 0.045
    process_bytes: int = 4_000_000_000
    activation_factor: float = 1.0


DEFAULT_CONSTANTS = Constants()
# Without CUDA's libraries and pinned buffers: eight runs of the demo's model took 0.48 to 0.66 GB beside their tensors.
CPU_CONSTANTS = Constants(process_bytes=700_000_000)


def default_constants(gpu: Gpu | None) -> Constants:
    """Return the constants of a device that was not calibrated."""
    return CPU_CONSTANTS if gpu is not None and gpu.is_cpu else DEFAULT_CONSTANTS


class MemoryEstimate(NamedTuple):
    """Bytes by item: ``gpu`` per GPU at its ``peak``, ``host`` per node, ``disk`` for the run."""

    gpu: dict[str, int]
    host: dict[str, int]
    disk: dict[str, int]
    peak: str
    moments: dict[str, int]
    capacity: int | None = None

    @property
    def gpu_bytes(self) -> int:
        """Total per GPU at the peak; 0 for a CPU job, whose memory is all in ``host``."""
        return sum(self.gpu.values())

    @property
    def host_bytes(self) -> int:
        """Total per node."""
        return sum(self.host.values())

    @property
    def host_needed(self) -> int:
        """Total per node without the copy of a checkpoint and states in memory, without which a run works, too."""
        return self.host_bytes - self.host.get(CHECKPOINT_COPY, 0) - self.states_bytes

    @property
    def states_bytes(self) -> int:
        """States in the shared memory of a node; 0 if it keeps none."""
        return self.host.get(STATES_IN_MEMORY, 0)

    def with_states(self, size: int) -> MemoryEstimate:
        """Return the estimate with ``size`` bytes of states in the shared memory of every node."""
        return self._replace(host={**self.host, STATES_IN_MEMORY: size}) if size else self

    @property
    def disk_bytes(self) -> int:
        """Total of the run folder."""
        return sum(self.disk.values())

    @property
    def stack(self) -> Stack:
        """What to draw: one GPU against its memory, or one node where there is no GPU."""
        from qwen_job.picture import Stack  # only who draws pays for it

        return Stack(self.gpu, self.capacity) if self.gpu else Stack(self.host, of="node")

    def with_data(self, data_bytes: int) -> MemoryEstimate:
        """Return the estimate with ``data_bytes`` of prepared data on disk and in the page cache of every node."""
        if not data_bytes:
            return self
        host, disk = {**self.host, "data and page cache": data_bytes}, {**self.disk, PREPARED_DATA: data_bytes}
        return self._replace(host=host, disk=disk)

    def as_exported(self, export: Export) -> MemoryEstimate:
        """Return the estimate with what ``train.export`` adds: original has the trained weights twice at the end."""
        if export == "text":
            return self
        return self._replace(disk={**self.disk, SECOND_COPY: self.disk["model"]})

    def fits(self, margin: float = 0.05) -> bool:
        """Return whether it fits in GPU memory with ``margin`` free; True if the GPU's memory is unknown."""
        return self.capacity is None or self.gpu_bytes <= self.capacity * (1 - margin)


def zero_settings(zero_stage: int) -> Mapping[str, Any]:
    """Return the ``zero_optimization`` block of qwen_job/facts/deepspeed/zeroN.json, read once."""
    return _zero_settings(zero_stage)


@lru_cache(maxsize=8)
def _zero_settings(zero_stage: int) -> dict[str, Any]:
    text = fact("deepspeed", f"zero{zero_stage}.json").read_text(encoding="utf-8")
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
    local_parameters: int | None = None,
) -> dict[str, int]:
    """Bytes of weights, gradients, master weights and Adam moments that a rank keeps on its GPU between steps.

    16 bytes per parameter in mixed precision, sharded by stage (arXiv:1910.02054, section 3): ZeRO-1 keeps 4 +
    12/N, ZeRO-2 2 + 14/N, ZeRO-3 16/N. ZeRO keeps an fp32 master copy even of fp32 weights; without ZeRO it
    does not. ``master_weights=False`` is plain half-precision AdamW: moments in the weights' type, no master.
    ``local_parameters``: those of a rank where the others have further experts; a shard of both is the same.
    """
    element, whole = BYTES[precision], num_parameters if local_parameters is None else local_parameters
    shard = -(-num_parameters // world_size)
    gradients = whole if zero_stage < 2 else shard
    optimizer = whole if zero_stage == 0 else shard
    needs_master = master_weights and (precision != "fp32" or zero_stage > 0)
    if offload_optimizer:
        optimizer = gradients = 0
    return {
        "weights": element * (shard if zero_stage == 3 else whole),
        "gradients": element * gradients,
        "master weights": MASTER_BYTES * optimizer if needs_master else 0,
        "optimizer": (ADAM_BYTES if master_weights else 2 * element) * optimizer,
    }


def estimate_memory(
    layout: Layout,
    *,
    master_weights: bool = True,
    fused_optimizer: bool = True,
    save_total_limit: int = 2,
    zero: Mapping[str, Any] | None = None,
    constants: Constants | None = None,
) -> MemoryEstimate:
    """Estimate the peak memory per GPU and per node, and the size of the run folder, item by item, in bytes.

    ``zero``: the ``zero_optimization`` block to be used, by default from qwen_job/facts/deepspeed.
    ``master_weights=False`` means plain half-precision AdamW without DeepSpeed; ``constants`` default to the device's.
    For a CPU job see ``MemoryEstimate.gpu``, for the data ``MemoryEstimate.with_data``.
    """
    settings = zero_settings(layout.zero_stage) if zero is None else zero
    constants = constants or default_constants(layout.gpu)
    states = model_state_bytes(
        layout.shape.num_parameters,
        zero_stage=layout.zero_stage,
        world_size=layout.world_size,
        precision=layout.precision,
        offload_optimizer=layout.offload_optimizer,
        master_weights=master_weights,
        local_parameters=layout.local_parameters,
    )
    moments = _moments(
        states,
        {item: int(constants.activation_factor * size) for item, size in activation_bytes(layout).items()},
        loss_bytes(layout),
        _buffers(layout, settings) if master_weights else {},
        0 if layout.offload_optimizer else _step_bytes(layout, settings, master_weights, fused_optimizer),
        keeps_gradients=layout.gradient_accumulation_steps > 1 or layout.zero_stage == 3,
    )
    totals = {moment: sum(items.values()) for moment, items in moments.items()}
    peak = max(totals, key=lambda moment: totals[moment])
    device, host = moments[peak], _host(layout, constants)
    if layout.on_cpu:
        host.update({item: layout.ranks * size for item, size in device.items()}, **{"loading the weights": 0})
        device = {}
    else:
        device["fragmentation"] = int(constants.fragmentation * totals[peak])
        device["held by the allocator"] = 0 if layout.expandable_segments else _held_bytes(totals, sum(states.values()))
        device["CUDA context"] = constants.context_bytes
        # One communicator of all ranks, and one of those that share rows.
        communicators = (layout.world_size > 1) + (layout.sequence_parallel_size > 1)
        device["NCCL"] = communicators * constants.nccl_bytes
    return MemoryEstimate(
        gpu={item: size for item, size in device.items() if size},
        host={item: size for item, size in host.items() if size},
        disk=_disk(layout, save_total_limit),
        peak=peak,
        moments=totals,
        capacity=None if layout.gpu is None else layout.gpu.memory_bytes,
    )


def _held_bytes(totals: Mapping[str, int], states: int) -> int:
    """Return what torch's allocator holds at most besides the peak, where its segments cannot grow.

    Blocks freed after backward may be of no use to the optimizer's large copies, and the other way round: then it holds
    both. It gives them back before it fails, but until then they count. No formula gives how much of it a run will hold
    (LOG.md).
    """
    return min(totals["optimizer"] - states, max(totals["loss"], totals["backward"]) - states)


def _moments(
    states: Mapping[str, int],
    activations: Mapping[str, int],
    loss: int,
    buffers: Mapping[str, int],
    step: int,
    *,
    keeps_gradients: bool,
) -> dict[str, dict[str, int]]:
    """Return the items in GPU memory at each of the three peaks.

    Gradients of earlier micro-batches remain (``keeps_gradients``). In the only micro-batch of a step, gradients grow
    while activations are freed, so the peak is at the start or the end of backward.
    """
    without = {**states, "gradients": states["gradients"] if keeps_gradients else 0}
    saved, working = activations["saved"], activations["working"]
    at_loss = saved + activations["final norm"]
    start = {**without, **buffers, "activations": saved, "one layer's backward": working}
    end = {**states, **buffers, "one layer's backward": working}
    return {
        "loss": {**without, **buffers, "activations": at_loss, "logits and loss": loss},
        "backward": max(start, end, key=lambda items: sum(items.values())),
        "optimizer": {**states, "optimizer's temporaries": step},
    }


def _buffers(layout: Layout, zero: Mapping[str, Any]) -> dict[str, int]:
    """Return DeepSpeed's buffers during backward: reduce buckets, gathered weights and the offload's staging buffer.

    ZeRO-1 and 2 have two buckets if communication overlaps, ZeRO-3 always one; a parameter larger than a bucket
    (Qwen's embedding and head, the experts of a layer) is reduced by itself. ZeRO-3 gathers at most
    ``stage3_max_live_parameters``, including prefetched ones, but never less than all experts of one layer, which are
    gathered together; it never shards norms and biases. Offload stages the largest gradient.
    """
    shape, stage, element = layout.shape, layout.zero_stage, layout.element
    if stage == 0 or layout.gradients_stay:
        return {}
    total, largest = layout.local_parameters, layout.largest_tensor
    bucket = int(zero["reduce_bucket_size"])
    copies = 2 if stage < 3 and zero.get("overlap_comm") else 1
    buckets = copies * min(bucket, total) + (largest if largest > bucket else 0)
    buffers = {"reduce buckets": element * buckets}
    if stage == 3 and layout.world_size > 1:
        live = int(zero["stage3_max_live_parameters"])
        gathered = min(max(live, layout.largest_gathered), total)
        buffers["gathered weights"] = element * (gathered + shape.small_parameters)
    if layout.offload_optimizer and stage < 3:
        buffers["offload staging"] = element * largest
    return buffers


def _step_bytes(layout: Layout, zero: Mapping[str, Any], master_weights: bool, fused_optimizer: bool) -> int:
    """Return the temporaries of the optimizer step on the GPU, in addition to the gradients.

    ZeRO makes a flat copy of this rank's gradients and its fp32 version, ZeRO-3 one ``sub_group_size`` at a time; in
    fp32 the flat copy is the only one, without ZeRO and where gradients stay in place the fp32 version is. An unfused
    AdamW needs one more temporary of the moments' size; the flat copy has been freed by then.
    """
    element, total = layout.element, layout.shape.num_parameters
    if not master_weights:
        return 0 if fused_optimizer else element * total
    if layout.zero_stage == 0:
        return (4 * total if element < 4 else 0) + (0 if fused_optimizer else 4 * total)
    shard = layout.shard
    if layout.zero_stage == 3:
        shard = min(shard, int(zero["sub_group_size"]))
    flat = element if element < 4 and not layout.gradients_stay else 0
    return (4 + max(flat, 0 if fused_optimizer else 4)) * shard


def _host(layout: Layout, constants: Constants) -> dict[str, int]:
    """Return the host memory of one node, by item.

    An offloaded optimizer keeps 4 bytes per parameter of master weights, 8 of moments and 4 of fp32 gradients, 16-bit
    accumulated gradients and (ZeRO-1 and 2) pinned 16-bit weights, each sharded over all ranks. Without offload a
    checkpoint is copied to the host and written from there: master weights and moments of every rank (ZeRO-0: of the
    first), and the weights, complete on the first rank except with ZeRO-3. While weights load, the ranks of a node
    share one copy, which they map from the files (benchmarks/bench_loading.py; with ZeRO-3, transformers reads them on
    the first rank only). Qwen's are in bf16; what is converted is counted for every process: that was not measured.
    """
    element, ranks, shard = layout.element, layout.ranks, layout.shard
    host = {"processes": ranks * constants.process_bytes}
    kept = 0
    if layout.offload_optimizer:
        staging = element * layout.largest_tensor if layout.zero_stage < 3 else 0
        host["offloaded optimizer"] = ranks * shard * (MASTER_BYTES + ADAM_BYTES)
        host["offloaded gradients"] = ranks * shard * (4 + element)
        host["pinned weights"] = ranks * (shard * element if layout.zero_stage < 3 else 0)
        host["offload staging"] = ranks * staging
        kept = ranks * (shard * (MASTER_BYTES + ADAM_BYTES + 4 + element))
    if checkpoints := offloaded_bytes(layout):
        host["offloaded activations"] = ranks * checkpoints
    copies = 1 if layout.precision == "bf16" else ranks
    flattened = ranks * _flattened_on_host(layout, constants)
    loading = max(0, copies * element * layout.shape.num_parameters + flattened - kept)
    host["loading the weights"] = loading
    if not layout.offload_optimizer and not layout.on_cpu:
        whole = layout.shape.num_parameters
        state = (MASTER_BYTES + ADAM_BYTES) * (ranks * shard if layout.zero_stage else whole)
        copy = state + element * (ranks * shard if layout.zero_stage == 3 else whole)
        host[CHECKPOINT_COPY] = max(0, copy - loading)  # the memory for loading has been freed by then
    return host


def _flattened_on_host(layout: Layout, constants: Constants) -> int:
    """Return the bytes by which a rank's weights are flattened in host memory, before the first step.

    DeepSpeed (stage_1_and_2.py) copies them to the host, and flattens them there, where the GPU has no room for a
    second copy of all its weights.
    """
    whole = layout.element * layout.shape.num_parameters
    capacity = layout.gpu.memory_bytes if layout.gpu is not None else None
    if layout.zero_stage not in (1, 2) or layout.gradients_stay or capacity is None or layout.on_cpu:
        return 0
    return 2 * whole if 2 * whole + constants.context_bytes + constants.nccl_bytes > capacity else 0


def state_bytes(layout: Layout) -> int:
    """Return the bytes of the state that one node needs to resume: weights, master weights and Adam's moments.

    Weights are whole except with ZeRO-3; the rest is each rank's share, without ZeRO one rank's for all.
    """
    whole, shards = layout.shape.num_parameters, layout.ranks * layout.shard
    weights = layout.element * (shards if layout.zero_stage == 3 else whole)
    master = MASTER_BYTES if layout.zero_stage or layout.element < MASTER_BYTES else 0
    return weights + (master + ADAM_BYTES) * (shards if layout.zero_stage else whole)


def _disk(layout: Layout, save_total_limit: int) -> dict[str, int]:
    """Return the disk space of a run: every kept checkpoint, and one more while it is written."""
    total = layout.shape.num_parameters
    checkpoint = total * (layout.element + MASTER_BYTES + ADAM_BYTES)
    return {
        "checkpoints": checkpoint * (save_total_limit + 1),
        "model": total * layout.element,
    }
