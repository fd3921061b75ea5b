"""train.yaml: what the plan hands to the trainer, typed. Nothing here imports torch.

- ``TrainConfig``: every key of train.yaml; unknown keys are refused with their place
- ``check_training``: what is asked under training and cannot be had
- ``load_config``: train.yaml and the deepspeed.json beside it
- ``save_config``: the way back, for runs that were started from flags
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwen_job import strict_json, strict_yaml
from qwen_job.atomic import read_limited, write_atomically
from qwen_job.errors import JobError, Problem
from qwen_job.facts import settings

DeepSpeedConfig = dict[str, Any]
# Names of transformers 4 that version 5 removed, and what they are called now.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "activation_checkpointing": "gradient_checkpointing",
    "local-rank": "local_rank",
    "no_cuda": "use_cpu",
    "cpu": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class Training(BaseModel):
    """Hugging Face TrainingArguments names; others are judged by the table of qwen_job/facts/settings.py."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)

    per_device_train_batch_size: int = Field(default=1, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    num_train_epochs: float = Field(default=1.0, gt=0)
    max_steps: int = -1
    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    logging_steps: int = Field(default=1, ge=1)
    eval_strategy: Literal["steps", "epoch"] = "steps"
    eval_steps: int | None = Field(default=None, ge=1)
    save_strategy: Literal["steps", "epoch"] = "steps"
    save_steps: int = Field(default=500, ge=0)
    save_total_limit: int | None = Field(default=2, ge=1)
    dataloader_num_workers: int = Field(default=1, ge=0)
    report_to: list[str] = Field(default_factory=list)
    early_stopping_patience: int | None = Field(default=None, ge=1)
    load_best_model_at_end: bool = False

    def extra(self) -> dict[str, Any]:
        """Return the TrainingArguments fields that the user added to the known ones."""
        return dict(self.model_extra or {})


class Stop(_Strict):
    """How long saving and leaving may take, in seconds. The time limit itself is the target's: see run/signals.py."""

    grace_seconds: float = Field(default=120, ge=0)


class Guards(_Strict):
    """What to do when the loss breaks or a rank stops moving."""

    on_nan: Literal["stop", "skip"] = "stop"
    loss_spike_factor: float | None = Field(default=10.0, gt=1)
    skip_rows: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    hang_seconds: float = Field(default=900, ge=0)


class Planned(_Strict):
    """What the plan foresaw, for messages and the report beside what was measured.

    Memory is that of one GPU, or of one process on a CPU: ``memory_bytes_per_gpu`` counts what the run measures (on a
    GPU what torch allocates), ``memory_items`` everything, to be drawn against ``memory_capacity_bytes``.
    """

    memory_bytes_per_gpu: int | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    memory_items: dict[str, int] | None = None
    memory_capacity_bytes: int | None = None


class TrainConfig(_Strict):
    """One run, every choice made. ``model`` and ``data`` are checked by the rooms that read them."""

    version: Literal[1] = 1
    name: str
    output_dir: Path
    seed: int = Field(default=42, ge=0, lt=2**32)  # numpy's generator takes 32 bits
    resume: Literal["auto", "extend", "changed"] = "auto"
    world_size: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cuda"
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    attention: Literal["varlen", "sdpa", "eager"] = "sdpa"
    fused_loss: Literal["torch", "chunked", "liger", "none"] = "none"
    torch_compile: bool = False
    gradient_checkpointing: bool = True
    peak_tflops: float | None = Field(default=None, gt=0)
    model: dict[str, Any]
    data: dict[str, Any]
    training: Training = Training()
    stop: Stop = Stop()
    guards: Guards = Guards()
    plan: Planned = Planned()

    @property
    def global_batch_size(self) -> int:
        """Rows of one optimizer step: micro-batch x accumulation x world size."""
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps * self.world_size

    @property
    def evaluates(self) -> bool:
        """Whether held-out rows are evaluated while training."""
        held_out = bool(self.data.get("eval")) or bool(self.data.get("eval_split"))
        return held_out and (self.training.eval_strategy == "epoch" or self.training.eval_steps is not None)


def check_training(config: TrainConfig) -> None:
    """Refuse settings under ``training`` that would have no effect, or fail later.

    Raises:
        JobError: each of them with what to write instead.
    """
    extra = {RENAMED.get(name, name): value for name, value in config.training.extra().items()}
    found = [
        settings.Complaint(name, text)
        for name, value in extra.items()
        if (text := settings.fault(name, value, Training.model_fields))
    ]
    if not found:
        typed = ("early_stopping_patience", "load_best_model_at_end")
        given = settings.Circumstances(config.evaluates, on_cpu=config.device == "cpu")
        values = {**config.training.model_dump(), **extra, "torch_compile": config.torch_compile}
        found = settings.conflicts(values, [*extra, *typed], given)
    if config.device == "cpu" and config.precision == "fp16":
        raise JobError([Problem("train.yaml", 0, 0, "precision", "DeepSpeed has no fp16 on a CPU; write fp32")])
    if found:
        raise JobError([Problem("train.yaml", 0, 0, f"training.{name}", text) for name, text in found])


def load_config(path: Path) -> tuple[TrainConfig, DeepSpeedConfig]:
    """Read train.yaml and the deepspeed.json beside it.

    Raises:
        JobError: a file is missing, is not YAML or JSON, or a key is unknown or has a wrong value.
    """
    config = parse_config(_read(path, strict_yaml.loads), str(path))
    beside = path.with_name("deepspeed.json")
    deepspeed = _read(beside, strict_json.loads)
    if not isinstance(deepspeed, dict):
        raise JobError([Problem(str(beside), 0, 0, "", "must be a JSON object")])
    return config, deepspeed


def parse_config(values: object, source: str) -> TrainConfig:
    """Check the values of train.yaml; all problems come in one ``JobError``."""
    if not isinstance(values, dict):
        raise JobError([Problem(source, 0, 0, "", "must be a mapping of settings")])
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise JobError([_problem(source, item) for item in error.errors()]) from None


def save_config(config: TrainConfig, deepspeed: DeepSpeedConfig, folder: Path) -> None:
    """Write train.yaml and deepspeed.json, so that a run started from flags leaves the same folder."""
    values = config.model_dump(mode="json")
    write_atomically(folder / "train.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_atomically(folder / "deepspeed.json", json.dumps(deepspeed, indent=2) + "\n")


def keep_settings(source: Path, run: Path) -> None:
    """Copy what the run was made from into its folder, where it was mounted from elsewhere (as Kubernetes does)."""
    if source.resolve() == run.resolve():
        return
    for name in ("job.yaml", "train.yaml", "deepspeed.json"):
        if (source / name).is_file():
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / name, (source / name).read_text(encoding="utf-8"))


def _read(path: Path, parse: Any) -> object:
    try:
        return parse(read_limited(path, strict_yaml.MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise JobError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise JobError([Problem(str(path), 0, 0, "", f"cannot be parsed: {_one_line(error)}")]) from None


def _problem(source: str, item: Any) -> Problem:
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return Problem(source, 0, 0, field, "unknown key; remove it or correct its name")
    return Problem(source, 0, 0, field, item["msg"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
