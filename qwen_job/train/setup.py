"""Everything that must stand before the first step: arguments, model, trainer, and where to go on from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transformers.utils.logging import disable_progress_bar

from qwen_job.data import PackedRows, open_prepared
from qwen_job.errors import DataError, JobError, NoProgress
from qwen_job.facts.config_fields import unknown_fields
from qwen_job.models.check import read_config
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.manifest import newest, wrong_hash
from qwen_job.run.signals import StopWish
from qwen_job.train.arguments import training_arguments
from qwen_job.train.checkpoints import Checkpointer
from qwen_job.train.course import Course
from qwen_job.train.deepspeed_config import offloads_optimizer, zero_stage
from qwen_job.train.export import control_tokens, rehearse
from qwen_job.train.guards import source_of
from qwen_job.train.identity import Identity, identity_of, read_identity, resume_course
from qwen_job.train.loss import LossHead, compile_chunks, exact_kind
from qwen_job.train.modeling import build_model, shape_of
from qwen_job.train.rendezvous import Place, tell
from qwen_job.train.runlog import RunLog, fruitless_attempts, read_metrics
from qwen_job.train.settings_diff import changes_since
from qwen_job.train.trainer import JobTrainer
from qwen_job.train.trainer_base import Parts
from qwen_job.train.universal import check_stage, make_universal
from qwen_job.train.watchdog import Watchdog

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_MOST_FRUITLESS = 3


def build_trainer(
    config: TrainConfig,
    deepspeed: DeepSpeedConfig,
    model_folder: Path,
    prepared: Path,
    place: Place,
    wish: StopWish,
    watchdog: Watchdog,
    log: RunLog,
    identity: Identity,
) -> JobTrainer:
    """Return a trainer ready to run; the arguments come first, because ZeRO-3 partitions while loading."""
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(config.output_dir))
    disable_progress_bar()  # type: ignore[no-untyped-call]
    args, notes = training_arguments(config, deepspeed, first=place.is_first)
    for note in notes:
        log.say(note)
    data = open_prepared(prepared)
    if len(data.train) == 0:
        raise DataError(f"{prepared}: no row to train on is left after preparing; look at qwen-job data check")
    _report_left_out(config, data.train, log)
    model = build_model(config, model_folder)
    if unknown := unknown_fields(read_config(model_folder)):
        log.say(f"config.json: {', '.join(unknown)}: not known to transformers' model, and ignored")
    for note in rehearse(model, model_folder, config) if place.is_first else ():
        log.say(note)
    stage = zero_stage(deepspeed)
    parts = Parts(
        config=config,
        deepspeed=deepspeed,
        log=log,
        wish=wish,
        watchdog=watchdog,
        head=LossHead(model, _fused_loss(config, log)),
        shape=shape_of(model),
        checkpointer=Checkpointer(
            config.output_dir / "checkpoints", zero_stage=stage, background=_has_room_aside(config, deepspeed)
        ),
        pad_id=control_tokens(model_folder).get("<|endoftext|>", 0),
        train=data.train,
        eval=data.eval,
        identity=identity,
    )
    return JobTrainer(model, args, parts)


def _report_left_out(config: TrainConfig, rows: PackedRows, log: RunLog) -> None:
    files = config.data["train"]
    for row in config.guards.skip_rows:
        if row >= len(rows):
            raise JobError(f"train.skip_rows: {row}: there are {len(rows)} rows, from 0 to {len(rows) - 1}")
        log.write("guard", 0, action="leave out", rows=[row])
        log.say(f"train.skip_rows: row {row} ({source_of(rows, row, files)}) is left out of every epoch")


def identify(config: TrainConfig, prepared: Path, model_folder: Path) -> Identity:
    """Measure what would be trained: rows, model, and the width of a step."""
    return identity_of(prepared, len(open_prepared(prepared).train), model_folder, config.global_batch_size)


def refuse_going_in_circles(folder: Path, step: int | None) -> None:
    """Refuse a further attempt when several in a row began at ``step`` and saved nothing.

    Raises:
        NoProgress: trying again would only use up the allocation.
    """
    count = fruitless_attempts(read_metrics(folder), step)
    if count >= int(os.environ.get("QWEN_JOB_MAX_WITHOUT_PROGRESS") or _MOST_FRUITLESS):
        raise NoProgress(
            f"{count} attempts in a row began at step {step or 0} and ended before the next checkpoint; look at the "
            f"logs of the last one, or lower save_steps so that an attempt reaches a save, then run the job again"
        )


def _fused_loss(config: TrainConfig, log: RunLog) -> str:
    kind = exact_kind(config.fused_loss, config.precision)
    if kind != config.fused_loss:
        log.say(f"fused_loss: {kind} instead of {config.fused_loss}, whose loss has only 16 bits in {config.precision}")
    if kind == "chunked" and config.torch_compile:
        compile_chunks()
    return kind


def _has_room_aside(config: TrainConfig, deepspeed: DeepSpeedConfig) -> bool:
    """Tell whether a copy of the state fits host memory: not where the optimizer's state lives there already."""
    return config.device == "cuda" and not offloads_optimizer(deepspeed)


class Resume(NamedTuple):
    """Where a run resumes; ``universal`` when the checkpoint was saved on another number of ranks."""

    step: int
    path: Path
    universal: bool


class Beginning(NamedTuple):
    """What an attempt starts with: a checkpoint or nothing, and what belongs to the run."""

    resume: Resume | None
    identity: Identity


def refuse_corrupt(checkpoints: Path, place: Place, store: Store) -> dict[str, str]:
    """Read the newest checkpoint, each rank its own files, until one is whole; returns the broken ones and why.

    The ranks read at the same time, and no collective is open while they do.
    """
    refused: dict[str, str] = {}

    def candidate() -> str:
        found, _ = newest(checkpoints, hashes=False, refused=refused)
        return str(found.path) if found else ""

    def judged(name: str, folder: Path) -> str:
        for rank in range(place.world_size):
            # Rank 0 reads its own files first; the others have begun with theirs meanwhile.
            reason = tell(store, f"{name}/{rank}", rank == 0, lambda: wrong_hash(folder, 0, place.world_size))
            if reason:
                return f"{reason}, as rank {rank} read it"
        return ""

    while proposed := tell(store, f"candidate/{len(refused)}", place.is_first, candidate):
        folder, name = Path(proposed), f"candidate/{len(refused)}/rank"
        if not place.is_first:
            tell(store, f"{name}/{place.rank}", True, lambda: wrong_hash(folder, place.rank, place.world_size))  # noqa: B023
        reason = tell(store, f"{name}/verdict", place.is_first, lambda: judged(name, folder))  # noqa: B023
        if not reason:
            break
        refused[folder.name] = reason
    return refused


def choose_checkpoint(
    config: TrainConfig, stage: int, place: Place, store: Store, log: RunLog, identity: Callable[[], Identity]
) -> Beginning:
    """Choose the newest complete checkpoint, its files read by all ranks; rank 0 reports why.

    ``identity`` measures on rank 0 what would be trained.

    Raises:
        JobError: the checkpoint was saved with another ZeRO stage, or belongs to other data or another model.
    """
    refused = refuse_corrupt(config.output_dir / "checkpoints", place, store)

    def choose() -> str:
        found, passed_over = newest(config.output_dir / "checkpoints", hashes=False, refused=refused)
        refuse_going_in_circles(config.output_dir, found.step if found else None)
        for line in passed_over:
            log.say(f"checkpoints: {line}")
        now = identity()
        if found is None:
            _refuse_without_checkpoint(config, log)
            return json.dumps([None, now])
        check_stage(found, stage)
        log.say(f"going on from {found.path.name}: the newest checkpoint whose files match its manifest")
        if (config.output_dir / "done.json").exists():
            log.say(f"train.resume: extend: the run was complete and is trained on from step {found.step}")
        if changed := changes_since(found.path, config):
            log.say(f"changed since {found.path.name} was saved, and taken from here on: {'; '.join(changed)}")
        course, notes = resume_course(found.step, read_identity(found.path), now, config.resume, config.output_dir)
        for note in notes:
            log.say(note)
        now = now._replace(course=course)
        if found.world_size == place.world_size or stage == 0:
            return json.dumps([[found.step, str(found.path), False], now])
        log.say(f"it was saved on {found.world_size} ranks, {place.world_size} are running: converting it")
        return json.dumps([[found.step, str(make_universal(found)), True], now])

    resumed, (data, model, rows, width, course) = json.loads(tell(store, "checkpoint", place.is_first, choose))
    resume = None if resumed is None else Resume(resumed[0], Path(resumed[1]), resumed[2])
    return Beginning(resume, Identity(data, model, rows, width, Course(*course)))


def _refuse_without_checkpoint(config: TrainConfig, log: RunLog) -> None:
    if (config.output_dir / "done.json").exists():
        raise JobError(
            f"train.resume: extend: no checkpoint is left in {config.output_dir} and so no optimizer: start from its "
            "model/ in another output"
        )
    if any(line["type"] == "save" for line in read_metrics(config.output_dir)):
        log.say("metrics.jsonl tells of checkpoints, and none is left that can be used: starting at step 1")
