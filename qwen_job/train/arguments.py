"""train.yaml as Hugging Face TrainingArguments."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.optimization import get_scheduler

from qwen_job.errors import JobError, Problem
from qwen_job.facts import settings
from qwen_job.run.config import RENAMED, DeepSpeedConfig, TrainConfig, check_training

# Read by our own code instead.
_NOT_PASSED_ON = ("torch_compile_backend", "torch_compile_mode", "metric_for_best_model")


def training_arguments(
    config: TrainConfig, deepspeed: DeepSpeedConfig, *, first: bool
) -> tuple[TrainingArguments, list[str]]:
    """Return the arguments and a sentence for every old name that was translated.

    ``first`` is true on the rank that reports to TensorBoard and the like.

    Raises:
        JobError: a field under ``training`` is unknown, has a value that is refused, or is decided elsewhere.
    """
    training = config.training
    check_training(config)
    extra, notes = _translate(training.extra())
    evaluates = config.evaluates
    values: dict[str, Any] = {
        "output_dir": str(config.output_dir),
        "run_name": config.name,
        "seed": config.seed,
        "use_cpu": config.device == "cpu",
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "deepspeed": deepspeed,
        "activation_checkpointing": config.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if config.gradient_checkpointing else None,
        **training.model_dump(exclude=_ours(training)),
        "warmup_steps": training.warmup_ratio,
        "eval_strategy": training.eval_strategy if evaluates else "no",
        "eval_steps": training.eval_steps if evaluates else None,
        # The perplexity is the loss's exponential: what is best by one is best by the other.
        "metric_for_best_model": "loss" if evaluates else None,
        "save_strategy": training.save_strategy if training.save_steps else "no",
        "save_steps": training.save_steps or 500,
        "report_to": training.report_to if first else [],
        # The Trainer's loop, our steps: it must neither print, sync nor log on its own.
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "log_level": "error",
        "use_cache": False,
        "remove_unused_columns": False,
        "restore_callback_states_from_checkpoint": False,
        "dataloader_pin_memory": config.device == "cuda",
        **extra,
    }
    try:
        return TrainingArguments(**values), notes
    except (ValueError, TypeError) as error:
        raise JobError([Problem("train.yaml", 0, 0, "training", " ".join(str(error).split()))]) from None


def _ours(training: Any) -> set[str]:
    """Names under ``training`` that are not passed on: ours, or translated above."""
    ours = {"warmup_ratio", "early_stopping_patience", "load_best_model_at_end", "logging_steps", "report_to"}
    ours |= {"eval_strategy", "eval_steps", "save_strategy"}
    return ours | {"save_total_limit"} | set(training.extra())


def _translate(extra: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that are handed to transformers, by today's names, and a note for each old name."""
    accepted = settings.facts()["accepted"]
    today = {name: RENAMED.get(name, name) for name in extra}
    notes = [f"training.{name} is called {new} today: translated" for name, new in today.items() if new != name]
    passed = {new: extra[name] for name, new in today.items() if new in accepted and new not in _NOT_PASSED_ON}
    return passed, notes


def check_schedule(args: TrainingArguments, total_steps: int) -> None:
    """Try the schedule's curve over all steps of the run, before the first one is computed.

    Raises:
        JobError: it fails at some step, or its phases do not fit ``total_steps``.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    written: Any = args.lr_scheduler_kwargs
    warmup, kwargs = args.get_warmup_steps(total_steps), dict(written or {})
    kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    later = int(kwargs.get("num_stable_steps", 0)) + int(kwargs.get("num_decay_steps", 0))
    try:
        if warmup + later > total_steps and kind == "warmup_stable_decay":
            raise ValueError(f"{warmup} steps of warmup and {later} after it are more than the run's {total_steps}")
        schedule: Any = get_scheduler(args.lr_scheduler_type, optimizer, warmup, total_steps, kwargs)
        for curve in getattr(schedule, "lr_lambdas", []):
            for step in {*range(min(total_steps, 1000) + 1), warmup, warmup + 1, total_steps - 1, total_steps}:
                if not math.isfinite(curve(step)):
                    raise ValueError(f"the learning rate of step {step} is not finite")
    except (ValueError, TypeError, ArithmeticError) as error:
        text = f"{kind} does not work with {total_steps} steps and {warmup} of warmup: {' '.join(str(error).split())}"
        raise JobError([Problem("train.yaml", 0, 0, "training.lr_scheduler_type", text)]) from None
