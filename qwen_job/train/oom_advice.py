"""Settings that need less memory than a run that ran out of it, with the same global batch."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from qwen_job.errors import QwenJobError
from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.facts.sequence_parallel import rank_name, sizes
from qwen_job.plan.estimate.calibrate import layout_of
from qwen_job.plan.estimate.layout import Layout, divided_of, why_not_shared
from qwen_job.plan.estimate.memory import estimate_memory
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.text import GIB, gib

_SHARE_OF_GPU = 0.95


class Suggestions(NamedTuple):
    """Settings in words, the least costly first, and whether they were estimated to fit."""

    settings: list[str]
    fit: bool


def suggestions(
    config: TrainConfig, deepspeed: DeepSpeedConfig, peak_bytes: int | None, capacity: int | None
) -> Suggestions:
    """Return up to three settings that need less memory on a GPU of ``capacity`` bytes.

    Each is estimated, and the estimate raised by as much as this run needed more than its own: at least the peak that
    was measured, and more than the GPU has. Without a GPU, or a known shape, all that need less are named.
    """
    zero = dict(deepspeed.get("zero_optimization", {}))
    try:
        now = layout_of(config, deepspeed)
    except QwenJobError:
        now = None
    found = changes(config, zero)
    if now is None or capacity is None:
        return Suggestions([text for text, _ in found][:3], fit=False)
    shorter = next((place for place, (text, _) in enumerate(found) if "max_length" in text), len(found))
    found[shorter:shorter] = _more_sharing(config, now)
    planned = estimate_memory(now).gpu_bytes
    factor = max(1.0, (peak_bytes or 0) / planned, capacity / planned)
    fitting = []
    for text, change in found:
        need = factor * estimate_memory(now._replace(**change)).gpu_bytes
        if need <= _SHARE_OF_GPU * capacity:
            fitting.append(f"{text} (about {need / GIB:.0f} GiB)")
    return Suggestions(fitting[:3], fit=True)


def _more_sharing(config: TrainConfig, now: Layout) -> list[tuple[str, dict[str, Any]]]:
    """List the larger numbers of GPUs that could share each row, with the same rows in a micro-batch and in a step."""
    if why_not_shared(now.shape, now.attention):
        return []
    gpus = int(os.environ.get("LOCAL_WORLD_SIZE", config.world_size))
    divided = divided_of(now.shape, config.data.max_length, gpus)
    larger = [one for one in sizes(divided) if one > now.sequence_parallel_size]
    found: list[tuple[str, dict[str, Any]]] = []
    for size in larger:
        steps = now.gradient_accumulation_steps * size // now.sequence_parallel_size
        change = {"sequence_parallel_size": size, "gradient_accumulation_steps": steps}
        if size % now.sequence_parallel_size == 0:
            found.append((f"sequence_parallel_size: {size} with gradient_accumulation_steps: {steps}", change))
    return found


def changes(config: TrainConfig, zero: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """List changes in words and as fields of a layout, the least costly first; the last ones combine several."""
    training = config.training
    micro, rows = training.per_device_train_batch_size, training.gradient_accumulation_steps
    found: list[tuple[str, dict[str, Any]]] = []
    smaller = micro
    while smaller > 1:
        smaller //= 2
        times = rows * micro // smaller
        text = f"per_device_train_batch_size: {smaller} with gradient_accumulation_steps: {times}"
        found.append((text, {"micro_batch_size": smaller, "gradient_accumulation_steps": times}))
    if config.fused_loss == "none" and config.device == "cuda":
        found.append(("fused_loss: chunked", {"fused_loss": "chunked"}))
    lean: list[tuple[str, dict[str, Any]]] = []
    if not config.gradient_checkpointing:
        lean.append(("gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if not config.tiled_mlp and config.gradient_checkpointing and config.data.max_length > TILE_TOKENS:
        lean.append(("tiled_mlp: true", {"tiled_mlp": True}))
    stage = int(zero.get("stage", 0))
    if stage < 3 and config.world_size > 1:
        lean.append((f"ZeRO stage 3 instead of {stage}", {"zero_stage": 3}))
    if config.device == "cuda" and (zero.get("offload_optimizer") or {}).get("device", "none") == "none":
        text = "the optimizer offloaded to the CPU (deepspeed.offload_optimizer: true)"
        lean.append((text, {"offload_optimizer": True, "zero_stage": max(stage, 2)}))
    found += lean
    length = config.data.max_length
    if length > 512:
        found.append((f"data.max_length: {length // 2}", {"sequence_length": length // 2}))
    if len(lean) > 1 or (lean and micro > 1):
        least = {"micro_batch_size": 1, "gradient_accumulation_steps": rows * micro} if micro > 1 else {}
        words = [f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {rows * micro}"] if least else []
        for text, change in lean:
            words, least = [*words, text], {**least, **change}
            if len(words) > 1:
                found.append((" and ".join(words), dict(least)))
    return found


def advice(found: Suggestions) -> str:
    """Return the suggestions as a sentence."""
    if not found.fit:
        listed = "; ".join([*found.settings, "more GPUs", "a smaller model"][:3])
        return f"each of these needs less: {listed}"
    if found.settings:
        return f"these are estimated to fit: {'; '.join(found.settings)}"
    return "no setting would fit: use more GPUs or a smaller model (see qwen-job plan)"


def oom_message(
    config: TrainConfig, deepspeed: DeepSpeedConfig, error: str, peak_bytes: int | None, capacity: int | None
) -> str:
    """Return the plan beside the measurement, and three settings that would fit, the least costly first.

    ``capacity`` is the GPU's memory in bytes, None without one: then it is the host's that was too small.
    """
    planned = config.plan.memory_bytes_per_gpu
    numbers = f"planned {_gib(planned)}, peak before the failure {_gib(peak_bytes)}"
    if capacity is not None:
        numbers += f", the GPU has {_gib(capacity)}"
    size = config.sequence_parallel_size
    who = f" on {rank_name(int(os.environ.get('RANK', '0')), size)}" if size > 1 else ""
    found = advice(suggestions(config, deepspeed, peak_bytes, capacity))
    return f"out of memory{who} ({error}); {numbers}; {found}"


def _gib(number: int | None) -> str:
    return "unknown" if number is None else gib(number)


def gpu_memory() -> tuple[int | None, int | None]:
    """Return the most memory that this process held on its GPU, and what the GPU has, in bytes; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    return int(torch.cuda.max_memory_allocated()), int(torch.cuda.get_device_properties(0).total_memory)
