"""The settings that a checkpoint was trained with, and what has changed in train.yaml since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.errors import JobError
from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import SETTINGS
from qwen_job.run.sections import DataFile, plain

# These change how the training runs, not its result.
_OF_THE_MACHINE = frozenset(
    {
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "per_device_eval_batch_size",
        "dataloader_num_workers",
        "logging_steps",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "longest_first",  # the order that the run began with is kept
        "memory_save_steps",
        "report_to",
        "early_stopping_patience",
        "load_best_model_at_end",
    }
)
_OF_THE_DATA = (
    "train",
    "eval",
    "eval_split",
    "format",
    "template",
    "system_prompt",
    "learn",
    "thinking",
    "empty_think",
    "several_thoughts",
    "max_length",
    "long_samples",
    "packing",
    "mask",
    "turn_order",
    "ignore_keys",
)


def settings_text(config: TrainConfig) -> str:
    """Return the settings that decide what is learned, as the text of a checkpoint's settings.json."""
    values: dict[str, Any] = {"model.name": config.model.name, "seed": config.seed}
    values |= {"precision": config.precision, "global_batch_size": config.global_batch_size}
    data = plain(config.data)
    data |= {split: [_entry(file) for file in getattr(config.data, split)] for split in ("train", "eval")}
    values |= {f"data.{name}": data[name] for name in _OF_THE_DATA}
    if config.model.rope_scaling is not None:
        values["model.rope_scaling"] = plain(config.model.rope_scaling)
    if config.router_aux_loss_coef is not None:
        values["router_aux_loss_coef"] = config.router_aux_loss_coef
    if config.guards.skip_rows:
        values["skip_rows"] = config.guards.skip_rows
    training = config.training.model_dump(mode="json")
    values |= {f"training.{name}": value for name, value in training.items() if name not in _OF_THE_MACHINE}
    return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _entry(file: DataFile) -> dict[str, Any]:
    """Return what an entry says; a name's files in the cache are not settings."""
    entry = {"path": file.source or str(file.path), "weight": file.weight}
    return {**entry, "revision": file.revision} if file.revision else entry


def changes_since(checkpoint: Path, config: TrainConfig) -> list[str]:
    """Describe what differs from the settings that ``checkpoint`` was saved with: field, before -> now."""
    try:
        before = strict_json.loads((checkpoint / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []  # saved by an earlier version
    return differences(before, config)


def differences(before: dict[str, Any], config: TrainConfig, fields: list[str] | None = None) -> list[str]:
    """Describe how ``config`` differs from the settings ``before``: field, before -> now; by default every field."""
    now = json.loads(settings_text(config))
    return [
        f"{field} {_short(before.get(field))} -> {_short(now.get(field))}"
        for field in fields or sorted(set(before) | set(now))
        if before.get(field) != now.get(field)
    ]


def is_complete(config: TrainConfig) -> bool:
    """Tell whether the run is complete with these settings.

    Raises:
        JobError: it is complete with other settings, and ``resume: extend`` is not set.
    """
    try:
        done = strict_json.loads(config.folder.done.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except ValueError:
        return True
    before = done.get("settings") if isinstance(done, dict) else None
    # Fields that only a later version has are no changes.
    changed = differences(before, config, sorted(before)) if isinstance(before, dict) else []
    if changed and config.resume != "extend":
        raise JobError(
            f"output: {config.output_dir} is complete (done.json), with other settings: {'; '.join(changed)}; write "
            "another output, or train.resume: extend to continue training with its optimizer state"
        )
    return not changed


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
