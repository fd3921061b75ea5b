"""Expert parallelism: groups of ranks split the experts of every layer, and exchange tokens instead of weights.

DeepSpeed's AutoEP replaces the layers of transformers by its own. This module is all that depends on it:

- ``expert_settings``: what AutoEP is given;  ``unrecorded``: what it needs to work with transformers 5.23
- ``set_experts_apart``: the optimizer's group of experts, whose gradients few ranks share
- ``whole_weights``: all weights as transformers names them, every rank's experts included
- ``renamed``, ``named_by_autoep``: a name of AutoEP as transformers has it, and the other way round
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from qwen_job.errors import JobError
from qwen_job.run.config import DeepSpeedConfig
from qwen_job.train.deepspeed_config import expert_parallel_size, zero_stage

# AutoEP's own name for how a model_type routes; it reads norm_topk_prob and shared experts from the model.
_PRESETS = {"qwen2_moe": "qwen3_moe", "qwen3_moe": "qwen3_moe", "qwen3_5_moe_text": "qwen3_5_moe"}
# AutoEP calls get() of transformers' registry with a default, which the registry of these versions does not take.
_BREAKS_ON_REGISTRY = ("0.19.8",)
_EXPERTS = re.compile(r"(?P<block>.+\.mlp)\.experts\.(?P<matrix>w[123])")
ALIAS = ".mlp.gate.gate."  # by which AutoEP's router is found as well
_RENAMED = (
    (".mlp.router.gate.", ".mlp.gate."),
    (".mlp.shared_experts.", ".mlp.shared_expert."),
    (".mlp.shared_experts_gate.", ".mlp.shared_expert_gate."),
)


def expert_settings(model: Any, settings: DeepSpeedConfig) -> dict[str, Any]:
    """Return AutoEP's block of DeepSpeed's settings.

    Raises:
        JobError: the experts of ``model`` cannot be split as deepspeed.json asks.
    """
    size, config = expert_parallel_size(settings), model.config.get_text_config()
    preset, experts = _PRESETS.get(config.model_type), getattr(config, "num_experts", 0)
    if preset is None:
        raise JobError(
            f"deepspeed.json: expert_parallel.autoep_size: {size}: {config.model_type} has no experts; remove "
            "expert_parallel, or take a mixture of experts"
        )
    if experts % size:
        raise JobError(
            f"deepspeed.json: expert_parallel.autoep_size: {size} does not divide the model's {experts} experts; write "
            "a size that does"
        )
    return {**settings["expert_parallel"], "preset_model": preset}


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Let AutoEP build its layers under a transformers whose registry of recorded outputs it cannot read.

    It would move the recording of router logits to its layers; we hook the routers instead. Without effect where
    DeepSpeed is not one of the versions that break.
    """
    from transformers.utils import output_capturing

    if version("deepspeed") not in _BREAKS_ON_REGISTRY:
        yield
        return
    kept: Any = output_capturing._CAN_RECORD_REGISTRY
    nothing: Any = None  # AutoEP passes over what is no dictionary
    output_capturing._CAN_RECORD_REGISTRY = nothing
    try:
        yield
    finally:
        output_capturing._CAN_RECORD_REGISTRY = kept


def set_experts_apart(groups: list[dict[str, Any]], model: Any, size: int) -> list[dict[str, Any]]:
    """Return the optimizer's ``groups`` with the experts of ``model`` in one more, as DeepSpeed's MoE wants them.

    AutoEP puts its own tensors where those were that they replace.
    """
    experts = {parameter for name, parameter in model.named_parameters() if ".mlp.experts." in name}
    first = next(group for group in groups if any(parameter in experts for parameter in group["params"]))
    apart = {**first, "params": [parameter for parameter in first["params"] if parameter in experts]}
    first["params"] = [parameter for parameter in first["params"] if parameter not in experts]
    return [*groups, {**apart, "moe": True, "name": f"ep_size_{size}"}]


def whole_weights(engine: Any, settings: DeepSpeedConfig) -> dict[str, Tensor]:
    """Return all weights as transformers names them, in host memory; only rank 0 gets any. A collective of all ranks.

    DeepSpeed's own consolidation has the experts of rank 0 alone.
    """
    found: dict[str, Tensor] = {}
    groups = {id(weight): _group_of(weight) for weight in engine.module.parameters()}
    for name, weight in engine.module.state_dict(keep_vars=True).items():
        if ALIAS in name:
            continue
        with deepspeed.zero.GatheredParameters([weight], enabled=zero_stage(settings) == 3):
            parts = _on_first(weight.detach(), groups.get(id(weight)))
        if parts:
            found[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return _as_transformers_has_them(found)


def renamed(name: str) -> str:
    """Return the name that transformers has for a tensor of AutoEP's that is not of an expert."""
    for theirs, ours in _RENAMED:
        name = name.replace(theirs, ours)
    return name


def named_by_autoep(name: str) -> str:
    """Return the name that AutoEP has for a tensor of transformers' that is not of an expert."""
    for theirs, ours in _RENAMED:
        name = name.replace(ours, theirs)
    return name


def _group_of(weight: Tensor) -> Any:
    """Return the ranks that have the other experts, or None for a weight that every rank has."""
    from deepspeed.utils import groups

    name = getattr(weight, "group_name", None)
    return None if name is None else groups._get_expert_parallel_group(name)


def _on_first(weight: Tensor, group: Any) -> list[Tensor]:
    """Return the parts of ``weight`` in host memory on rank 0, in the order of ``group``; nothing elsewhere."""
    first = dist.get_rank() == 0
    if group is None:
        return [weight.cpu().clone()] if first else []
    if 0 not in dist.get_process_group_ranks(group):
        return []
    parts = [torch.empty_like(weight) for _ in range(dist.get_world_size(group))] if first else None
    dist.gather(weight.contiguous(), parts, dst=0, group=group)
    return [part.cpu() for part in parts or []]


def _as_transformers_has_them(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``weights`` under transformers' names, w1 and w3 of a layer [E, I, H] as one gate_up_proj [E, 2 I, H]."""
    whole: dict[str, Tensor] = {}
    for name in list(weights):
        expert = _EXPERTS.fullmatch(name)
        if expert is None:
            whole[renamed(name)] = weights.pop(name)
        elif expert["matrix"] == "w2":
            whole[f"{expert['block']}.experts.down_proj"] = weights.pop(name)
        elif expert["matrix"] == "w1":
            pair = weights.pop(name), weights.pop(f"{expert['block']}.experts.w3")
            whole[f"{expert['block']}.experts.gate_up_proj"] = torch.cat(pair, 1)
    return whole
