"""The TrainingArguments that a user may add under ``train``, typed, by the names that transformers gives them today.

What each does here is in the table of accepted names (training_arguments.yaml); every other name is refused there.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from qwen_job.facts import train_settings as settings
from qwen_job.run.config import RENAMED, TrainConfig, check_training

# Rows of an evaluation step by default, as in transformers, and the tokens from which there are fewer.
_EVAL_ROWS, _EVAL_TOKENS = 8, 16_384


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The accepted names with transformers' defaults."""

    data_seed: int | None = None
    dataloader_persistent_workers: bool = False
    dataloader_pin_memory: bool = True
    dataloader_prefetch_factor: int | None = None
    eval_delay: float = 0.0
    eval_on_start: bool = False
    full_determinism: bool = False
    log_level: str = "error"
    log_level_replica: str = "warning"
    logging_first_step: bool = False
    lr_scheduler_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric_for_best_model: str = "loss"  # or the perplexity, its exponential: what is best by one is best by the other
    neftune_noise_alpha: float | None = None
    per_device_eval_batch_size: int | None = None  # by the rows' length: see eval_rows
    project: str | None = None
    run_name: str | None = None
    tf32: bool | None = None
    torch_compile_backend: str | None = None
    torch_compile_mode: str | None = None
    torch_empty_cache_steps: int | None = None
    trackio_bucket_id: str | None = None
    trackio_space_id: str | None = None
    trackio_static_space_id: str | None = None
    warmup_steps: float | None = None


def read_arguments(config: TrainConfig) -> tuple[Arguments, list[str]]:
    """Return the arguments, and a sentence for every old name that was translated.

    Raises:
        JobError: a field under ``training`` is unknown, has a value that is refused, or is decided elsewhere.
    """
    check_training(config)
    return _read(config)


def _read(config: TrainConfig) -> tuple[Arguments, list[str]]:
    accepted, extra = settings.facts()["accepted"], config.training.extra()
    today = {name: RENAMED.get(name, name) for name in extra}
    notes = [f"training.{name} is now called {new}: translated" for name, new in today.items() if new != name]
    given = {new: extra[name] for name, new in today.items() if new in accepted and extra[name] is not None}
    return Arguments(**given), notes


def eval_rows(config: TrainConfig, arguments: Arguments) -> int:
    """Return the rows of an evaluation step: as written, else 8, or fewer where rows are long; the loss is the same.

    No more tokens than a micro-batch of training has, or 16,384, so that long rows do not run out of memory there.
    """
    written, training = arguments.per_device_eval_batch_size, config.training.per_device_train_batch_size
    return written or max(training, min(_EVAL_ROWS, _EVAL_TOKENS // config.data.max_length))


def warmup_steps(config: TrainConfig, arguments: Arguments, total_steps: int) -> int:
    """Return the steps of warmup: ``warmup_steps``, below 1 a share of the run; without it ``warmup_ratio``."""
    written = arguments.warmup_steps
    asked = config.training.warmup_ratio if written is None else written
    return int(asked) if asked >= 1 else math.ceil(total_steps * asked)
