"""Resolves deepspeed.json: no "auto", no scheduler, no optimizer block; every change has a reason.

Nothing here imports torch or DeepSpeed.
"""

from __future__ import annotations

import copy
from typing import Any

from qwen_job.errors import JobError, Problem
from qwen_job.facts.deepspeed_keys import KNOWN, key_fault
from qwen_job.run.config import DeepSpeedConfig, TrainConfig

# DeepSpeed's own defaults would hide these from a reader of deepspeed.json.
_ZERO_DEFAULTS: dict[str, Any] = {
    "reduce_bucket_size": 200_000_000,
    "allgather_bucket_size": 200_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_gather_16bit_weights_on_model_save": True,
}


def resolve(config: TrainConfig, given: DeepSpeedConfig, source: str) -> tuple[DeepSpeedConfig, list[str]]:
    """Return the configuration that the engine is given and a sentence for each thing that was changed.

    Raises:
        JobError: a value contradicts train.yaml, or an "auto" stands where nothing can fill it.
    """
    result = copy.deepcopy(given)
    notes = [*_unknown(result, source), *_drop_blocks(result)]
    if "zero_optimization" not in result:
        notes.append(f"{source}: has no zero_optimization: every GPU holds the whole optimizer (ZeRO stage 0)")
    result.setdefault("zero_optimization", {"stage": 0})
    # DeepSpeed's own measurement makes the host wait for the GPU in every forward pass; ours is in metrics.jsonl.
    result.setdefault("timers", {"throughput": {"enabled": False}})
    _fill_known(result, config, source)
    _fill_zero(result["zero_optimization"])
    _check_experts(result, config, source)
    left = _find_auto(result)
    if left:
        raise JobError([Problem(source, 0, 0, key, 'cannot resolve "auto": write a number') for key in left])
    # To DeepSpeed, ranks that share rows are ranks with separate rows: see sequence_parallel.py.
    result["train_batch_size"] *= config.sequence_parallel_size
    return result, notes


def zero_stage(deepspeed: DeepSpeedConfig) -> int:
    """Return the ZeRO stage, 0 to 3."""
    return int(deepspeed.get("zero_optimization", {}).get("stage", 0))


def expert_parallel_size(deepspeed: DeepSpeedConfig) -> int:
    """Return how many ranks share the experts of a layer; 1: each has all of them."""
    block = deepspeed.get("expert_parallel") or {}
    return int(block.get("autoep_size", 1)) if block.get("enabled") else 1


def offloads_optimizer(deepspeed: DeepSpeedConfig) -> bool:
    """Tell whether the optimizer's state lives in host memory."""
    offload = deepspeed.get("zero_optimization", {}).get("offload_optimizer") or {}
    return str(offload.get("device", "none")) != "none"


def _unknown(given: DeepSpeedConfig, source: str) -> list[str]:
    """Return a note for each key that DeepSpeed would not read.

    Raises:
        JobError: a key looks like a misspelt one, or is not offered.
    """
    notes, problems = [], []
    for key, value in given.items():
        if problem := key_fault(key, value):
            problems.append(Problem(source, 0, 0, str(key), problem))
        elif key not in KNOWN:
            notes.append(f"{source}: {key}: not known to DeepSpeed, and so without effect")
    if problems:
        raise JobError(problems)
    return notes


def _drop_blocks(result: DeepSpeedConfig) -> list[str]:
    notes = []
    scheduler = result.pop("scheduler", None)
    if scheduler is not None:
        notes.append(
            f"DeepSpeed's scheduler block ({scheduler.get('type', '?')}) is left out: it would silently replace "
            "the learning rate schedule that you asked for"
        )
    if result.pop("optimizer", None) is not None:
        notes.append(
            "DeepSpeed's optimizer block is left out: it would decay norms and biases too; "
            "AdamW is built with the same numbers and decays the matrices only"
        )
    return notes


def _fill_known(result: DeepSpeedConfig, config: TrainConfig, source: str) -> None:
    training = config.training
    wanted: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "train_batch_size": config.global_batch_size,
        "gradient_clipping": training.max_grad_norm,
    }
    problems = []
    for key, value in wanted.items():
        if result.get(key, "auto") == "auto":
            result[key] = value
        elif result[key] != value:
            problems.append(Problem(source, 0, 0, key, f"is {result[key]}, but the training settings give {value}"))
    for key, name in (("bf16", "bf16"), ("fp16", "fp16")):
        problems += _fill_precision(result, key, config.precision == name, source)
    if problems:
        raise JobError(problems)


def _fill_precision(result: DeepSpeedConfig, key: str, wanted: bool, source: str) -> list[Problem]:
    block = result.setdefault(key, {"enabled": wanted})
    if block.get("enabled", "auto") == "auto":
        block["enabled"] = wanted
    if bool(block["enabled"]) == wanted:
        return []
    state = "on" if block["enabled"] else "off"
    return [Problem(source, 0, 0, f"{key}.enabled", f"is {state}, but the precision asked for is another one")]


def _fill_zero(zero: dict[str, Any]) -> None:
    for key, value in _ZERO_DEFAULTS.items():
        if zero.get(key) == "auto":
            zero[key] = value
    if zero.get("stage") == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True


def _check_experts(result: DeepSpeedConfig, config: TrainConfig, source: str) -> None:
    """Drop a block about experts that asks for nothing.

    Raises:
        JobError: the experts cannot be split over this number of ranks, or with this ZeRO stage.
    """
    field = "expert_parallel"
    if not isinstance(result.get(field, {}), dict):
        raise JobError([Problem(source, 0, 0, field, f"expected fields, not {result[field]!r}")])
    size, field = expert_parallel_size(result), f"{field}.autoep_size"
    if size == 1:
        result.pop("expert_parallel", None)
        return
    if config.world_size % size:
        why = f"{size} does not divide {config.world_size} ranks; write one that does"
        raise JobError([Problem(source, 0, 0, field, why)])
    if zero_stage(result) == 0:
        why = "needs ZeRO: stage 0 clips gradients by a norm that is not that of all experts; write stage 1, 2 or 3"
        raise JobError([Problem(source, 0, 0, field, why)])


def _find_auto(value: object, path: str = "") -> list[str]:
    if value == "auto":
        return [path]
    if isinstance(value, dict):
        return [hit for key, item in value.items() for hit in _find_auto(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [hit for index, item in enumerate(value) for hit in _find_auto(item, f"{path}[{index}]")]
    return []
