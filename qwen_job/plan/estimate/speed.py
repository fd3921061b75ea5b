"""Estimate the time of a step from FLOPs, memory traffic, communication and PCIe, as a range.

Every link is modelled as bytes divided by a bandwidth that is reached in practice; what overlaps with
computing is hidden in the low end of the range and half exposed in the middle. Sources are at the
constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.facts.hardware import Gpu
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.plan.estimate.activations import DELTA_CHUNK, layers_activation_bytes
from qwen_job.plan.estimate.layout import BYTES, DELTA_KERNELS_FROM, Layout

# Share of the peak that large matrix products reach inside a training step, by compute capability. Alone they reach
# 0.87 on A100 and 0.80 on H100 (stas00/ml-engineering, maximum achievable matmul); fitted: BENCHMARKS.md.
MATMUL_EFFICIENCY = {0: 0.70, 7: 0.60, 8: 0.80, 9: 0.58}


@dataclass(frozen=True)
class SpeedConstants:
    """What no formula gives. ``qwen-job plan --calibrate`` fits the first two; defaults: see BENCHMARKS.md.

    ``compute_factor``: on MATMUL_EFFICIENCY; ``layer_seconds``: host time to launch one layer forward and backward,
    which small batches cannot hide; ``half_tokens``: tokens of a micro-batch at which matrix products of width 2048
    reach half their efficiency; ``traffic``: how often saved activations pass the GPU's memory in forward and
    backward; efficiencies are shares of a link's published speed in one direction.
    """

    compute_factor: float = 1.0
    layer_seconds: float = 0.005
    half_tokens: float = 128.0
    traffic: float = 8.0
    memory_efficiency: float = 0.75
    nvlink_efficiency: float = 0.75
    pcie_efficiency: float = 0.6
    network_efficiency: float = 0.8
    host_adam_per_second: float = 4.0e9  # ZeRO-Offload (arXiv:2101.06840), table 4: 4B parameters in 1.03 s a node


DEFAULT_SPEED = SpeedConstants()
# A processor works a layer's operations off one by one, and is as busy with few tokens as with many.
CPU_SPEED = SpeedConstants(layer_seconds=0.01, half_tokens=0.0)


def default_speed(gpu: Gpu | None) -> SpeedConstants:
    """Return the constants of a device that nobody calibrated."""
    return CPU_SPEED if gpu is not None and gpu.is_cpu else DEFAULT_SPEED


# Bytes per logit that pass the GPU's memory: written and read in fp32, forward and backward.
LOSS_TRAFFIC = 24
# Adam on the GPU, bytes a parameter read and written: gradients (twice, for the norm), master, two moments,
# weights.
ADAM_TRAFFIC = 40
# Launching the thirty kernels of a chunk of the gated delta rule, forward and backward, 10 us each. Not measured.
CHUNK_SECONDS = 0.0003
# Shared file systems: 1 GB/s for one job is modest; imports, NCCL and loading the weights take minutes.
DEFAULT_STORAGE_GBS, START_SECONDS, CPU_START_SECONDS = 1.0, 180.0, 10.0
# Compiling the layers before the first step without a cache: 35 s of Qwen-1.8B on an H200 (BENCHMARKS.md).
COMPILE_SECONDS = 35.0
# Without a figure, one 100 Gb/s link a node: the least that is common in GPU clusters.
DEFAULT_NETWORK_GBS = 12.5
# Processes without GPUs exchange through gloo: about this, inside one machine.
GLOO_GBS = 1.0
NETWORK = "network"


class SpeedEstimate(NamedTuple):
    """Seconds of one optimizer step as a range, what it comes to, and what bounds it.

    ``tokens_per_second`` is of the whole job; ``mfu`` is in our convention and None when the peak is unknown;
    ``parts`` are the middle estimate's seconds by cause before any overlap; ``rough``: the device's speed is assumed,
    so that nothing should be chosen by it; ``link`` names what carries most of ``parts["network"]``: the network
    between nodes, or NVLink or PCIe within one.
    """

    step_seconds: tuple[float, float, float]
    tokens_per_second: float
    mfu: float | None
    bound_by: str
    parts: dict[str, float]
    rough: bool = False
    link: str = NETWORK

    @property
    def low(self) -> float:
        """Seconds of a step if everything overlaps."""
        return self.step_seconds[0]

    @property
    def mid(self) -> float:
        """Seconds of a step to expect."""
        return self.step_seconds[1]

    @property
    def high(self) -> float:
        """Seconds of a step if little overlaps."""
        return self.step_seconds[2]


Range = tuple[float, float, float]


class RunEstimate(NamedTuple):
    """A whole run: (low, expected, high) seconds of an epoch and in all, GPU-hours, and money if a price is known.

    ``save_seconds`` is one checkpoint's time when nothing is computed meanwhile.
    """

    steps: int
    epoch_seconds: Range
    total_seconds: Range
    gpu_hours: Range
    cost: Range | None
    save_seconds: float


def flops_per_token(shape: ModelShape, sequence_length: float) -> float:
    """FLOPs of one trained token: 6 N_mm + 6 L h s + 18 L_lin n d_k d_v, our MFU convention.

    N_mm counts the weights that a token is multiplied with: not the embedding lookup, of the experts those that it
    passes. Attention (in L layers) is causal, so half of the square; for packed data ``sequence_length`` is
    sum(s_i^2) / sum(s_i). The gated delta rule of L_lin layers reads, corrects and writes each of n states of d_k x d_v
    (arXiv:2412.06464): 6 d_k d_v forward, twice that backward. Recomputation is not counted (that would be HFU).
    """
    return 6 * shape.num_matmul_parameters + _mixing_flops(shape, sequence_length)


def _mixing_flops(shape: ModelShape, sequence_length: float) -> float:
    """FLOPs of one trained token in attention and the gated delta rule, without their projections."""
    flops = 6 * shape.attention_layers * shape.query_size * sequence_length
    if linear := shape.linear:
        flops += 18 * linear.layers * linear.value_heads * linear.key_dim * linear.value_dim
    return flops


def loose_flops_per_token(shape: ModelShape, sequence_length: float) -> float:
    """FLOPs of one token as in PaLM (arXiv:2204.02311, appendix B): 6 N_total + 12 L h s, to compare."""
    return 6 * shape.active_parameters + 12 * shape.attention_layers * shape.query_size * sequence_length


def hardware_flops_per_token(shape: ModelShape, sequence_length: float, gradient_checkpointing: bool) -> float:
    """FLOPs that the GPU really does for a token: with checkpointing every layer runs forward twice."""
    total = flops_per_token(shape, sequence_length)
    if not gradient_checkpointing:
        return total
    return total + (6 * shape.layers_matmul_parameters + _mixing_flops(shape, sequence_length)) / 3


def estimate_speed(
    layout: Layout,
    *,
    attended_length: float | None = None,
    fill: float = 1.0,
    network_gbs: float | None = None,
    data_tokens_per_second: float | None = None,
    constants: SpeedConstants | None = None,
) -> SpeedEstimate | None:
    """Estimate the time of one optimizer step. Returns None when the device's peak at this precision is unknown.

    ``attended_length`` is sum(s_i^2)/sum(s_i) of packed samples (default: the whole sequence); ``fill`` the
    share of real tokens in a row; ``network_gbs`` 10^9 bytes/s of one node in one direction;
    ``data_tokens_per_second`` what storage and loaders give the whole job (default: enough, as prepared data is);
    ``constants`` default to the device's.
    """
    gpu, shape = layout.gpu, layout.shape
    peak = gpu.peak_tflops.get(layout.precision) if gpu is not None else None
    if gpu is None or peak is None:
        return None
    constants = constants or default_speed(gpu)
    attended = float(layout.sequence_length) if attended_length is None else attended_length
    tokens = layout.tokens * layout.gradient_accumulation_steps * layout.world_size
    parts = _on_gpu(layout, gpu, peak * 1e12, attended, constants)
    links = _link_seconds(layout, gpu, network_gbs, constants)
    parts[NETWORK], link = sum(links.values()), max(links, key=lambda name: links[name])
    parts |= _offload_seconds(layout, gpu, constants)
    parts["data"] = 0.0 if data_tokens_per_second is None else tokens / data_tokens_per_second
    low, mid, high = _one_after_another(parts, constants) if gpu.is_cpu else _overlapped(parts)
    flops = flops_per_token(shape, attended) * tokens * fill
    # A processor's peak is an assumption, so its MFU is not reported.
    mfu = None if gpu.is_cpu else flops / (mid * layout.world_size * peak * 1e12)
    largest = max(parts, key=lambda part: parts[part])
    bound = link if largest == NETWORK else largest
    return SpeedEstimate((low, mid, high), tokens * fill / mid, mfu, bound, parts, rough=gpu.is_cpu, link=link)


def _on_gpu(layout: Layout, gpu: Gpu, peak: float, attended: float, constants: SpeedConstants) -> dict[str, float]:
    """Seconds of a step that computing, memory traffic and launching take; ``peak`` in FLOP/s."""
    shape, tokens, accumulation = layout.shape, layout.tokens, layout.gradient_accumulation_steps
    again = 4 / 3 if layout.gradient_checkpointing else 1.0  # of three passes, forward and backward, one is done twice
    whole = layout._replace(tiled_mlp=False)
    traffic = constants.traffic * again * layers_activation_bytes(whole) + LOSS_TRAFFIC * tokens * shape.vocab_size
    traffic += _expert_traffic(layout, again) + _tile_traffic(layout)
    updated = shape.num_parameters / (layout.world_size if layout.zero_stage else 1)
    update = 0.0 if layout.offload_optimizer else ADAM_TRAFFIC * updated
    work = hardware_flops_per_token(shape, attended, layout.gradient_checkpointing) * tokens
    if layout.tiles and not layout.gradient_checkpointing:  # with it, a network is computed again either way
        work += 2 * shape.network_parameters * shape.num_hidden_layers * tokens
    delta = _delta_seconds(layout, gpu)
    bandwidth = (gpu.memory_bandwidth_gbs or 0) * 1e9 * constants.memory_efficiency
    return {
        "compute": accumulation * (work / (peak * _efficiency(layout, gpu, constants)) + again * delta.compute),
        "memory": (accumulation * traffic + update) / bandwidth if bandwidth else 0.0,
        "launch": accumulation * again * (constants.layer_seconds * shape.num_hidden_layers + delta.launch),
    }


def _tile_traffic(layout: Layout) -> int:
    """Return the bytes that a tiled network's gradients of weights pass: each tile's is written, read, and added."""
    if not layout.tiles:
        return 0
    shape, tiles = layout.shape, -(-layout.tokens // TILE_TOKENS)
    return shape.num_hidden_layers * tiles * (2 * layout.element + 8) * shape.network_parameters


class _Delta(NamedTuple):
    """Seconds of a micro-batch's forward and backward that the gated delta rule takes as torch operations."""

    compute: float = 0.0
    launch: float = 0.0


def _delta_seconds(layout: Layout, gpu: Gpu) -> _Delta:
    """Return what linear attention costs without its kernels, beyond the formula of ``flops_per_token``.

    transformers computes it in fp32 and in chunks of C = 64 tokens: beside the states, 5 d_k C + 3 d_v C FLOPs for each
    value head and token forward, and one chunk after another, which takes some thirty small kernels on a GPU.
    """
    linear, peak = layout.shape.linear, gpu.peak_tflops.get("fp32")
    if linear is None or layout.delta_kernels:
        return _Delta()
    heads, keys, values = linear.value_heads, linear.key_dim, linear.value_dim
    flops = 3 * heads * (6 * keys * values + DELTA_CHUNK * (5 * keys + 3 * values)) * layout.tokens * linear.layers
    chunks = -(-layout.sequence_length // DELTA_CHUNK) * linear.layers
    seconds = flops / (peak * 1e12 * MATMUL_EFFICIENCY[0]) if peak else 0.0
    return _Delta(seconds, 0.0 if gpu.is_cpu else chunks * CHUNK_SECONDS)


def fallback_seconds(layout: Layout, gpu: Gpu, constants: SpeedConstants | None = None) -> float:
    """Return the seconds of a step that linear attention adds where its kernels do not run, before any overlap."""
    constants, delta = constants or default_speed(gpu), _delta_seconds(layout, gpu)
    ampere = replace(gpu, compute_capability=max(gpu.compute_capability, DELTA_KERNELS_FROM))
    more = layers_activation_bytes(layout) - layers_activation_bytes(layout._replace(gpu=ampere))
    bandwidth = (gpu.memory_bandwidth_gbs or 0) * 1e9 * constants.memory_efficiency
    moved = constants.traffic * more / bandwidth if bandwidth else 0.0
    again = 4 / 3 if layout.gradient_checkpointing else 1.0
    return layout.gradient_accumulation_steps * again * (delta.compute + delta.launch + moved)


def _expert_traffic(layout: Layout, again: float) -> float:
    """Return the bytes of experts' weights and gradients that pass the GPU's memory in a micro-batch.

    A dense layer's weights are read once for thousands of tokens; an expert sees few of them.
    """
    experts = layout.shape.experts
    if experts is None:
        return 0.0
    weights = layout.shape.all_expert_parameters / layout.expert_parallel_size
    return layout.element * weights * (2 * again + 1)  # read forward (again) and backward; gradients written


def _efficiency(layout: Layout, gpu: Gpu, constants: SpeedConstants) -> float:
    """Share of the peak that matrix products of this many tokens and this width reach.

    Grouped products reach what their groups would: of a mixture, those with the tokens of one expert, which come from
    all ranks that split the experts. Not measured.
    """
    shape, tokens = layout.shape, layout.tokens
    best = MATMUL_EFFICIENCY.get(int(gpu.compute_capability), 0.7) * constants.compute_factor
    experts = shape.experts
    rows: float = tokens
    if experts is not None:
        rows = tokens * layout.expert_parallel_size * experts.per_token / experts.count
    return best * rows / (rows + constants.half_tokens * 2048 / shape.hidden_size)


def estimate_run(
    speed: SpeedEstimate,
    *,
    rows: int,
    global_batch_size: int,
    num_train_epochs: float,
    world_size: int,
    max_steps: int = -1,
    checkpoint_bytes: int = 0,
    save_steps: int = 500,
    storage_gbs: float = DEFAULT_STORAGE_GBS,
    start_seconds: float = START_SECONDS,
    price_per_gpu_hour: float | None = None,
    spare_gpus: int = 0,
) -> RunEstimate:
    """Estimate a run of ``rows`` rows an epoch: start-up, steps and checkpoints.

    Checkpoints are written to storage of ``storage_gbs`` 10^9 bytes/s; the low end hides them behind the next steps.
    GPU-hours count ``spare_gpus``, too: they are idle, but the job holds them.
    """
    per_epoch = max(1, math.ceil(rows / global_batch_size))
    steps = max_steps if max_steps > 0 else max(1, math.ceil(per_epoch * num_train_epochs))
    save = checkpoint_bytes / (storage_gbs * 1e9)
    saves = steps // save_steps + 1
    exposed = (0.0, 0.5 * save, save)
    total = _range(
        start_seconds + steps * step + saves * wait for step, wait in zip(speed.step_seconds, exposed, strict=True)
    )
    hours = _range(seconds * (world_size + spare_gpus) / 3600 for seconds in total)
    cost = None if price_per_gpu_hour is None else _range(value * price_per_gpu_hour for value in hours)
    return RunEstimate(steps, _range(per_epoch * step for step in speed.step_seconds), total, hours, cost, save)


def _range(values: Iterable[float]) -> Range:
    low, mid, high = values
    return low, mid, high


def communication_bytes(
    shape: ModelShape,
    zero_stage: int,
    world_size: int,
    precision: str,
    accumulation: int,
    expert_parallel_size: int = 1,
) -> float:
    """Bytes that one rank sends in an optimizer step (arXiv:1910.02054, section 7; times (N-1)/N for rings).

    ZeRO-0 and 1 reduce gradients once a step, ZeRO-2 once a micro-batch (its gradients are sharded at once),
    and both gather the new weights once; ZeRO-3 gathers weights twice and reduces gradients once a
    micro-batch. Experts that ``expert_parallel_size`` ranks split have as many times fewer ranks to share a part with.
    """
    split = shape.all_expert_parameters / expert_parallel_size
    alike = world_size / expert_parallel_size
    rest = shape.num_parameters - shape.all_expert_parameters
    volume = BYTES[precision] * (rest * (world_size - 1) / world_size + split * (alike - 1) / alike)
    passes = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[zero_stage]
    return volume * passes


def routed_bytes(layout: Layout) -> float:
    """Bytes of hidden states that one rank sends in a step to the ranks that have the experts of its tokens.

    Each of a token's k experts gets its hidden state and returns another; in backward their gradients take the same
    way, and with checkpointing the forward pass is done twice. Even routing leaves 1/N on the rank itself.
    """
    experts, size = layout.shape.experts, layout.expert_parallel_size
    if experts is None or size == 1:
        return 0.0
    once = layout.element * layout.tokens * experts.per_token * layout.shape.hidden_size * (size - 1) / size
    times = 6 if layout.gradient_checkpointing else 4
    return once * times * experts.layers * layout.gradient_accumulation_steps


def _link_seconds(layout: Layout, gpu: Gpu, network_gbs: float | None, constants: SpeedConstants) -> dict[str, float]:
    """Seconds of collectives by link: a ring is as fast as its slowest link; GPUs of a node share its network."""
    steps = layout.gradient_accumulation_steps
    size = layout.expert_parallel_size
    traffic = communication_bytes(layout.shape, layout.zero_stage, layout.world_size, layout.precision, steps, size)
    near, within = _node_link(gpu, constants)
    far, slowest = near, within
    if layout.nodes > 1:
        between = (network_gbs or DEFAULT_NETWORK_GBS) * constants.network_efficiency
        if within is None or between <= within:
            far, slowest = NETWORK, between
    if not traffic:
        return {far: 0.0}
    nearby, whole, routed = exchange_bytes(layout), traffic, routed_bytes(layout)
    if size <= layout.ranks:
        nearby += routed
    else:
        whole += routed
    seconds = {near: nearby / (within or DEFAULT_NETWORK_GBS) / 1e9}
    seconds[far] = seconds.get(far, 0.0) + whole / (slowest or DEFAULT_NETWORK_GBS) / 1e9
    return seconds


def _node_link(gpu: Gpu, constants: SpeedConstants) -> tuple[str, float | None]:
    """Return the link between two GPUs of a node, and its 10^9 bytes/s in one direction; None where it is unknown."""
    if gpu.is_cpu:
        return "gloo", GLOO_GBS
    if gpu.nvlink_gbs:
        return "NVLink", gpu.nvlink_gbs / 2 * constants.nvlink_efficiency
    if gpu.pcie_gbs:
        return "PCIe", gpu.pcie_gbs / 2 * constants.pcie_efficiency
    return "the link between GPUs", None


def exchange_bytes(layout: Layout) -> float:
    """Bytes that one rank sends in a step to the others that share its rows (Ulysses, arXiv:2309.14509, section 3).

    Queries, keys, values and outputs of its slice, but what it keeps, in the forward and the backward pass, and forward
    again with checkpointing. Keys and values are repeated where ranks are more than key-value heads. Linear attention
    also sends what its decay and its update are made of, a number each for every head of values.
    """
    shape, size = layout.shape, layout.sequence_parallel_size
    repeated = max(1, size // shape.num_key_value_heads)
    token = layout.element * (2 * shape.query_size + 2 * repeated * shape.key_value_size)
    sent = shape.attention_layers * token
    if linear := shape.linear:
        sent += linear.layers * layout.element * (linear.channels + linear.value_size + 2 * linear.value_heads)
    passes = layout.gradient_accumulation_steps * (3 if layout.gradient_checkpointing else 2)
    return passes * sent * layout.tokens * (size - 1) / size


def _offload_seconds(layout: Layout, gpu: Gpu, constants: SpeedConstants) -> dict[str, float]:
    """Seconds of gradients to the host each micro-batch, weights back each step, and Adam on the host.

    Offloaded checkpoints go to the host in forward, and come back in backward.
    """
    volume = seconds = 0.0
    steps, shape = layout.gradient_accumulation_steps, layout.shape
    if layout.offload_optimizer:
        shard = shape.num_parameters / layout.world_size
        volume = layout.element * shard * 2 * steps
        seconds = shard * layout.ranks / constants.host_adam_per_second
    if layout.activation_offloading and not layout.on_cpu:
        volume += 2 * steps * shape.num_hidden_layers * layout.tokens * layout.element * shape.hidden_size
    link = (gpu.pcie_gbs or 32.0) / 2 * constants.pcie_efficiency * 1e9
    return {"PCIe": volume / link, "host": seconds}


def _overlapped(parts: Mapping[str, float]) -> Range:
    """Return the range of a step on GPUs, where transfers hide behind computing: all of it, most, or nothing."""
    # How fast a host launches kernels differs most between machines: half to nearly twice the constant.
    low, mid, high = (
        _combine({**parts, "launch": host * parts["launch"]}, share)
        for share, host in ((0.0, 0.5), (0.3, 1.0), (1.0, 1.8))
    )
    return 0.85 * low, mid, 1.25 * high


def _one_after_another(parts: Mapping[str, float], constants: SpeedConstants) -> Range:
    """Return the range of a step on processors: the same cores do everything, and one differs much from another."""
    mid, off = sum(parts.values()), 2.0 if constants == CPU_SPEED else 1.4
    return mid / off, mid, mid * off


def _combine(parts: Mapping[str, float], exposed: float) -> float:
    """Seconds of a step when ``exposed`` (0-1) of what could overlap does not."""
    on_gpu = parts["compute"] + parts["memory"]
    busy = max(on_gpu, parts["launch"]) + exposed * 0.25 * min(on_gpu, parts["launch"])
    moved = parts["network"] + parts["PCIe"]
    hidden = min(moved, busy)
    return max(busy + (moved - hidden) + exposed * hidden + parts["host"], parts["data"])
