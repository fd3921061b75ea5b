"""deepspeed.json in full: the base config, overridden by the plan, then by the user."""

from __future__ import annotations

import json
from typing import Any

from qwen_job.errors import JobError, Problem
from qwen_job.facts import fact
from qwen_job.facts.deepspeed_keys import key_fault
from qwen_job.job import Job
from qwen_job.job.document import overlay
from qwen_job.plan.batch import Batch
from qwen_job.plan.search.choice import Choice


def deepspeed_config(job: Job, choice: Choice, precision: str, batch: Batch) -> dict[str, Any]:
    """Return the complete DeepSpeed configuration, without ``auto`` and without a scheduler.

    Raises:
        JobError: ``deepspeed.config`` contradicts the rest of the job.
    """
    problems = _contradictions(job, choice, precision, batch)
    if problems:
        raise JobError(problems)
    base: dict[str, Any] = json.loads(fact("deepspeed", f"zero{choice.zero_stage}.json").read_text("utf-8"))
    base["train_batch_size"] = batch.global_batch_size
    base["train_micro_batch_size_per_gpu"] = batch.micro_batch_size
    base["gradient_accumulation_steps"] = batch.gradient_accumulation_steps
    base["gradient_clipping"] = job.train.max_grad_norm
    base["bf16"] = {"enabled": precision == "bf16"}
    base["fp16"] = {"enabled": precision == "fp16"}
    if precision == "fp16":
        base["fp16"] |= {"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2}
    if batch.world_size == 1 and "overlap_comm" in base["zero_optimization"]:
        base["zero_optimization"]["overlap_comm"] = False  # nothing to overlap; it would wait and keep a second bucket
    if choice.offload_optimizer:
        base["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if choice.expert_parallel_size > 1:
        base["expert_parallel"] = {"enabled": True, "autoep_size": choice.expert_parallel_size}
    merged: dict[str, Any] = overlay(base, job.deepspeed.config)
    return merged


def _contradictions(job: Job, choice: Choice, precision: str, batch: Batch) -> list[Problem]:
    planned = {
        ("zero_optimization", "stage"): (choice.zero_stage, "deepspeed.zero_stage"),
        ("train_batch_size",): (batch.global_batch_size, "train.global_batch_size"),
        ("train_micro_batch_size_per_gpu",): (batch.micro_batch_size, "train.per_device_train_batch_size"),
        ("gradient_accumulation_steps",): (batch.gradient_accumulation_steps, "train.gradient_accumulation_steps"),
        ("gradient_clipping",): (job.train.max_grad_norm, "train.max_grad_norm"),
        ("bf16", "enabled"): (precision == "bf16", "train.bf16"),
        ("fp16", "enabled"): (precision == "fp16", "train.fp16"),
        ("zero_optimization", "offload_optimizer", "device"): (
            "cpu" if choice.offload_optimizer else "none",
            "deepspeed.offload_optimizer",
        ),
        ("expert_parallel", "enabled"): (choice.expert_parallel_size > 1, "train.expert_parallel_size"),
        ("expert_parallel", "autoep_size"): (choice.expert_parallel_size, "train.expert_parallel_size"),
    }
    keys = {key: key_fault(key, value) for key, value in job.deepspeed.config.items()}
    problems = [job.problem(("deepspeed", "config", key), said) for key, said in keys.items() if said]
    for path, value in _leaves(job.deepspeed.config):
        where = ("deepspeed", "config", *path)
        if path[0] in ("scheduler", "optimizer"):
            wins = f"DeepSpeed's {path[0]} would silently override train; remove it and set the fields of train"
            problems.append(job.problem(where[:3], wins))
        elif value == "auto":
            problems.append(job.problem(where, '"auto" is decided by the plan; remove the line'))
        elif not isinstance(value, dict) and any(known[: len(path)] == path for known in planned if known != path):
            fields = f"{path[-1]}: {{...}}"
            problems.append(job.problem(where, f"expected {fields} with fields, not {json.dumps(value)}"))
        elif path in planned and value != planned[path][0]:
            expected, field = planned[path]
            text = (
                f"{json.dumps(value)} contradicts {field}, which is {json.dumps(expected)}; remove it and set {field}"
            )
            problems.append(job.problem(where, text))
    return list(dict.fromkeys(problems))


def _leaves(value: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, item in value.items():
        found += _leaves(item, (*path, key)) if isinstance(item, dict) and item else [((*path, key), item)]
    return found
