"""The settings of a run: train.yaml with its deepspeed.json, or the command line of QwenLM's finetune.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qwen_job.errors import UsageError
from qwen_job.run.config import (
    DeepSpeedConfig,
    TrainConfig,
    check_training,
    keep_settings,
    load_config,
    save_config,
)
from qwen_job.run.folder import DEEPSPEED
from qwen_job.train.deepspeed_config import resolve
from qwen_job.train.flag_sections import Hardware
from qwen_job.train.flags import config_from_flags
from qwen_job.train.rendezvous import Place
from qwen_job.train.trackers import check_trackers

_BATCH_KEYS = ("train_batch_size", "gradient_accumulation_steps")


def read_settings(arguments: list[str], place: Place) -> tuple[TrainConfig, DeepSpeedConfig, list[str]]:
    """Read ``--config train.yaml``, or the reference's flags; also returns notes about them.

    Raises:
        UsageError: the command line is neither, or the global batch does not divide by the ranks.
        JobError: a setting is unknown or cannot be used.
    """
    if arguments[:1] == ["--config"] and len(arguments) == 2:
        path = Path(arguments[1])
        config, given = load_config(path)
        source, notes = str(path.with_name(DEEPSPEED)), []
        if config.world_size != place.world_size:
            config, note = _other_world(config, place.world_size)
            notes.append(note)
            given = {key: value for key, value in given.items() if key not in _BATCH_KEYS}
    elif not arguments or arguments[0] in ("-h", "--help"):
        raise UsageError("usage: python -m qwen_job.train --config RUN/train.yaml, or finetune.py's flags")
    else:
        config, given, notes = config_from_flags(arguments, _hardware(), place.world_size)
        source = "--deepspeed"
    check_training(config)
    check_trackers(config)
    deepspeed, changes = resolve(config, given, source)
    return config, deepspeed, [*notes, *changes]


def keep(arguments: list[str], config: TrainConfig, deepspeed: DeepSpeedConfig) -> None:
    """Keep in the run's folder what trains: the files as they were given, or what the flags came to."""
    if arguments[:1] == ["--config"]:
        keep_settings(Path(arguments[1]).parent, config.output_dir)
    else:
        save_config(config, deepspeed, config.output_dir)


def _other_world(config: TrainConfig, world_size: int) -> tuple[TrainConfig, str]:
    """Keep the global batch on another number of ranks, so that the run means the same."""
    rows, micro = config.global_batch_size, config.training.per_device_train_batch_size
    groups, odd = divmod(world_size, size := config.sequence_parallel_size)
    if odd:
        raise UsageError(
            f"train.yaml was planned for {config.world_size} ranks, {world_size} are running, and these cannot share "
            f"rows by {size}: plan the job again for {world_size} ranks"
        )
    accumulation, rest = divmod(rows, micro * groups)
    if rest or not accumulation:
        raise UsageError(
            f"train.yaml was planned for {config.world_size} ranks, {world_size} are running, and the global batch "
            f"of {rows} does not divide by {groups} x {micro}: plan the job again for {world_size} ranks"
        )
    changed = config.model_copy(deep=True)
    changed.world_size = world_size
    changed.training.gradient_accumulation_steps = accumulation
    return changed, (
        f"planned for {config.world_size} ranks, running on {world_size}: gradient_accumulation_steps becomes "
        f"{accumulation}, the global batch stays {rows}"
    )


def _hardware() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", None, False)
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return Hardware("cuda", torch.cuda.get_device_capability(), has_varlen)
