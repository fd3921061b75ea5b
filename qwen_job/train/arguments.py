"""train.yaml as Hugging Face TrainingArguments."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments

from qwen_job.errors import JobError, Problem
from qwen_job.train.config import DeepSpeedConfig, TrainConfig
from qwen_job.train.flags import RENAMED

# Decided elsewhere in train.yaml, or by the run folder's layout: a second opinion would only confuse.
_DECIDED = {
    "output_dir": "output_dir",
    "bf16": "precision",
    "fp16": "precision",
    "deepspeed": "deepspeed.json",
    "gradient_checkpointing": "gradient_checkpointing",
    "torch_compile": "torch_compile",
    "use_cpu": "device",
    "seed": "seed",
    "resume_from_checkpoint": "nothing: a run resumes by itself",
    "use_liger_kernel": "fused_loss: liger",
    "label_smoothing_factor": "the loss, which is the mean over the trained tokens",
    "optim": "the optimizer, which is AdamW",
    "optim_args": "the optimizer, which is AdamW",
}


def training_arguments(
    config: TrainConfig, deepspeed: DeepSpeedConfig, *, first: bool
) -> tuple[TrainingArguments, list[str]]:
    """Return the arguments and a sentence for every old name that was translated.

    ``first`` is true on the rank that reports to TensorBoard and the like.

    Raises:
        JobError: a field under ``training`` is unknown to the installed transformers, has a value that it refuses, or
            is decided elsewhere.
    """
    training = config.training
    extra, notes = _translate(training.extra())
    evaluates = training.eval_steps is not None and _has_eval(config)
    _refuse_without_evaluation(config, evaluates)
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
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": training.eval_steps if evaluates else None,
        "metric_for_best_model": "loss" if evaluates else None,
        "save_strategy": "steps" if training.save_steps else "no",
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


def _refuse_without_evaluation(config: TrainConfig, evaluates: bool) -> None:
    training = config.training
    wanted = {
        "early_stopping_patience": training.early_stopping_patience,
        "load_best_model_at_end": training.load_best_model_at_end,
    }
    needs = "needs held-out rows and eval_steps: write data.eval or data.eval_split, and training.eval_steps"
    problems = [Problem("train.yaml", 0, 0, f"training.{name}", needs) for name, value in wanted.items() if value]
    if problems and not evaluates:
        raise JobError(problems)


def _ours(training: Any) -> set[str]:
    """Names under ``training`` that are not passed on: ours, or translated above."""
    ours = {"warmup_ratio", "early_stopping_patience", "load_best_model_at_end", "logging_steps", "report_to"}
    return ours | {"save_total_limit"} | set(training.extra())


def _has_eval(config: TrainConfig) -> bool:
    return bool(config.data.get("eval")) or bool(config.data.get("eval_split"))


def _translate(extra: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known = {item.name for item in fields(TrainingArguments)}
    result, notes, problems = {}, [], []
    for name, value in extra.items():
        new = RENAMED.get(name, name)
        if new in _DECIDED:
            place = _DECIDED[new]
            problems.append(Problem("train.yaml", 0, 0, f"training.{name}", f"is decided by {place}; remove it"))
        elif new not in known:
            near = difflib.get_close_matches(new, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(Problem("train.yaml", 0, 0, f"training.{name}", f"unknown setting{hint}"))
        else:
            result[new] = value
            if new != name:
                notes.append(f"training.{name} is called {new} today: translated")
    if problems:
        raise JobError(problems)
    return result, notes
