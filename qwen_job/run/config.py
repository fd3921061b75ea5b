"""train.yaml: the typed settings that the plan passes to the trainer. Nothing here imports torch.

- ``TrainConfig``: every key of train.yaml; unknown keys are errors
- ``check_training``: settings under ``training`` that cannot work
- ``load_config``: train.yaml and the deepspeed.json beside it
- ``save_config``: write both files, for runs started from flags
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from qwen_job import strict_json, strict_yaml
from qwen_job.atomic import read_limited, write_atomically
from qwen_job.errors import DataError, JobError, ModelError, Problem, QwenJobError
from qwen_job.facts import choices
from qwen_job.facts import train_settings as settings
from qwen_job.run.folder import DEEPSPEED, JOB, TRAIN, RunFolder
from qwen_job.run.sections import (
    DataSpec,
    Guards,
    ModelSpec,
    Monitor,
    Planned,
    Section,
    Stop,
    Training,
    Webhook,
    fault_text,
    field_name,
    plain,
)
from qwen_job.run.sweep_index import sweep_runs

DeepSpeedConfig = dict[str, Any]
# Names that transformers 5 removed, and their replacements.
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


class TrainConfig(Section):
    """One run, every choice made."""

    version: Literal[1] = 1
    name: str
    output_dir: Path
    seed: int = Field(default=choices.SEED, ge=0, lt=choices.SEED_LIMIT)
    resume: choices.Resume = "auto"
    world_size: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cuda"
    precision: choices.Precision = "bf16"
    attention: choices.Attention = "sdpa"
    sequence_parallel_size: int = Field(default=1, ge=1)
    fused_loss: choices.FusedLoss = "none"
    torch_compile: choices.TorchCompile = "auto"
    gradient_checkpointing: bool = True
    activation_offloading: bool = False
    tiled_mlp: bool = False
    router_aux_loss_coef: float | None = Field(default=None, ge=0)
    export: choices.Export = choices.EXPORT
    peak_tflops: float | None = Field(default=None, gt=0)
    model: ModelSpec
    data: DataSpec
    training: Training = Field(default_factory=Training)
    stop: Stop = Field(default_factory=Stop)
    guards: Guards = Field(default_factory=Guards)
    notify: tuple[Webhook, ...] = ()
    monitor: Monitor = Field(default_factory=Monitor)
    plan: Planned = Field(default_factory=Planned)

    @property
    def global_batch_size(self) -> int:
        """Rows per optimizer step: micro-batch x accumulation x groups of ranks that share rows."""
        groups = self.world_size // self.sequence_parallel_size
        return self.training.per_device_train_batch_size * self.training.gradient_accumulation_steps * groups

    @property
    def folder(self) -> RunFolder:
        """The run's own folder, ``output_dir``."""
        return RunFolder(self.output_dir)

    @property
    def evaluates(self) -> bool:
        """Whether held-out rows are evaluated during training."""
        return self.data.held_out and (self.training.eval_strategy == "epoch" or self.training.eval_steps is not None)


def check_training(config: TrainConfig) -> None:
    """Refuse settings under ``training`` that would have no effect, or fail later.

    Raises:
        JobError: lists each with what to write instead.
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
        raise JobError([Problem(TRAIN, 0, 0, "precision", "DeepSpeed has no fp16 on a CPU; write fp32")])
    if found:
        raise JobError([Problem(TRAIN, 0, 0, f"training.{name}", text) for name, text in found])


def load_config(path: Path) -> tuple[TrainConfig, DeepSpeedConfig]:
    """Read train.yaml and the deepspeed.json beside it.

    Raises:
        JobError: a file is missing, is not YAML or JSON, or a key is unknown or has a wrong value.
    """
    config = parse_config(_read(path, strict_yaml.loads), str(path))
    beside = path.with_name(DEEPSPEED)
    deepspeed = _read(beside, strict_json.loads)
    if not isinstance(deepspeed, dict):
        raise JobError([Problem(str(beside), 0, 0, "", "must be a JSON object")])
    return config, deepspeed


def parse_config(values: object, source: str) -> TrainConfig:
    """Check the values of train.yaml and report all problems at once.

    Raises:
        JobError: names the file and fields; DataError or ModelError if all of them are in that section.
    """
    if not isinstance(values, dict):
        raise JobError([Problem(source, 0, 0, "", "must be a mapping of settings")])
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise _refusal([_problem(source, item) for item in error.errors()]) from None


def to_values(config: TrainConfig) -> dict[str, Any]:
    """Return the values that were set in ``config`` as plain data, in the order of its fields.

    Unlike ``model_dump``, this builds no serializer, which would slow down every command that renders.
    """
    values: dict[str, Any] = plain(config, only_set=True)
    return values


def save_config(config: TrainConfig, deepspeed: DeepSpeedConfig, folder: Path) -> None:
    """Write train.yaml and deepspeed.json, so that a run started from flags has the same files."""
    values = config.model_dump(mode="json")
    write_atomically(RunFolder(folder).train, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_atomically(RunFolder(folder).deepspeed, json.dumps(deepspeed, indent=2) + "\n")


def keep_settings(source: Path, run: Path) -> None:
    """Copy the run's input files into its folder if they were mounted from elsewhere (as on Kubernetes).

    The list of a sweep's runs goes into the folder above, which is the sweep's.
    """
    if source.resolve() == run.resolve():
        return
    for name in (JOB, TRAIN, DEEPSPEED):
        if (source / name).is_file():
            run.mkdir(parents=True, exist_ok=True)
            write_atomically(run / name, (source / name).read_text(encoding="utf-8"))
    runs = sweep_runs(source)
    # Not under a release's own name, whose folder is none of the sweep's.
    if runs and run.name in (one.folder for one in runs):
        write_atomically(RunFolder(run.parent).sweep, RunFolder(source).sweep.read_text(encoding="utf-8"))


def _read(path: Path, parse: Any) -> object:
    try:
        return parse(read_limited(path, strict_yaml.MAX_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise JobError([Problem(str(path), 0, 0, "", f"cannot be read: {error.strerror}")]) from None
    except ValueError as error:
        raise JobError([Problem(str(path), 0, 0, "", f"cannot be parsed: {_one_line(error)}")]) from None


def _problem(source: str, item: Any) -> Problem:
    return Problem(source, 0, 0, field_name(item["loc"]), fault_text(item))


def _refusal(problems: list[Problem]) -> QwenJobError:
    """Return the error whose exit code matches the section with the mistakes."""
    words = "\n".join(map(str, problems))
    sections = {problem.field.partition(".")[0] for problem in problems}
    if sections == {"data"}:
        return DataError(words)
    return ModelError(words) if sections == {"model"} else JobError(problems)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
