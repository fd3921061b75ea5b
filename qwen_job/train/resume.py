"""Where a run resumes: the newest checkpoint that every rank can read, and whether it belongs to this run.

- ``choose_checkpoint``: the checkpoint and the run's identity, chosen by rank 0 for all
- ``refuse_corrupt``: the ranks share the reading
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qwen_job.data import open_prepared
from qwen_job.errors import JobError, NoProgress
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.folder import step_name
from qwen_job.run.manifest import Checkpoint, newest, wrong_hash
from qwen_job.run.metrics import read_metrics
from qwen_job.train.course import Course
from qwen_job.train.deepspeed_config import expert_parallel_size, zero_stage
from qwen_job.train.identity import Identity, identity_of, read_identity, resume_course
from qwen_job.train.remembered import Remembered
from qwen_job.train.rendezvous import Place, tell
from qwen_job.train.runlog import RunLog, fruitless_attempts
from qwen_job.train.settings_diff import changes_since
from qwen_job.train.universal import check_stage, make_universal

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_MOST_FRUITLESS = 3


class Resume(NamedTuple):
    """Where a run resumes; ``universal`` when the checkpoint was saved on another number of ranks.

    ``saved``: the step of the newest checkpoint on disk; another one where the state was in memory.
    """

    step: int
    path: Path
    universal: bool
    saved: int | None
    in_memory: bool


class Beginning(NamedTuple):
    """What an attempt starts with: a checkpoint or none, and what belongs to the run."""

    resume: Resume | None
    identity: Identity


def reads_weights(deepspeed: DeepSpeedConfig, resume: Resume | None) -> bool:
    """Tell whether the model's own weights are needed: not where a checkpoint replaces every one on every rank.

    One that was converted to another number of ranks, or has experts that ranks split, is loaded in another way.
    """
    return resume is None or resume.universal or expert_parallel_size(deepspeed) > 1


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
            # Rank 0 reads its own files first, while the others read theirs.
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
    config: TrainConfig,
    deepspeed: DeepSpeedConfig,
    place: Place,
    store: Store,
    log: RunLog,
    identity: Callable[[], Identity],
    remembered: Remembered | None = None,
) -> Beginning:
    """Choose the newest complete checkpoint, its files read by all ranks; rank 0 reports why.

    ``identity`` measures on rank 0 what would be trained. ``remembered``: a verified state in memory that is at least
    as new; then no checkpoint is read.

    Raises:
        JobError: the checkpoint was saved with another ZeRO stage, or belongs to other data or another model.
    """
    stage, split = zero_stage(deepspeed), expert_parallel_size(deepspeed)
    refused = {} if remembered else refuse_corrupt(config.folder.checkpoints, place, store)

    def choose() -> str:
        found, passed_over = newest(config.folder.checkpoints, hashes=False, refused=refused)
        on_disk = found.step if found else None
        if remembered:
            found, passed_over = Checkpoint(remembered.step, remembered.path, place.world_size, stage, split), []
        refuse_without_progress(config.output_dir, found.step if found else None)
        for line in passed_over:
            log.say(f"checkpoints: {line}")
        now = identity()
        if found is None:
            _refuse_without_checkpoint(config, log)
            return json.dumps([None, now])
        check_stage(found, stage)
        known = "none" if on_disk is None else step_name(on_disk)
        where = f"verified in memory; on disk: {known}" if remembered else "the newest whose files match its manifest"
        log.say(f"resuming from {found.path.name}: {where}")
        if config.folder.done.exists():
            log.say(f"train.resume: extend: the run was complete; training continues from step {found.step}")
        if changed := changes_since(found.path, config):
            log.say(f"changed since {found.path.name} was saved, and used from now on: {'; '.join(changed)}")
        if note := sharing_note(config):
            log.say(note)
        before = read_identity(found.path)
        course, notes = resume_course(found.step, before, now, config.resume, config.output_dir)
        longest = before.longest if before else 0
        if bool(longest) != bool(now.longest):
            notes.append("train.longest_first: has no effect on a run that has begun: its rows keep their order")
        for note in notes:
            log.say(note)
        now = now._replace(course=course, longest=longest)
        if stage == 0 or (found.world_size, found.expert_parallel_size) == (place.world_size, split):
            return json.dumps([[found.step, str(found.path), False, on_disk], now])
        for line in _conversions(found, place.world_size, split):
            log.say(line)
        return json.dumps([[found.step, str(make_universal(found, split)), True, on_disk], now])

    resumed, (data, model, rows, width, course, longest) = json.loads(tell(store, "checkpoint", place.is_first, choose))
    resume = None
    if resumed is not None:
        step, path, universal, saved = resumed
        path = remembered.path if remembered else Path(path)  # each node has its own part in memory
        resume = Resume(step, path, universal, saved, remembered is not None)
    return Beginning(resume, Identity(data, model, rows, width, Course(*course), longest))


def sharing_note(config: TrainConfig) -> str:
    """Return what to report where the attempt before shared rows by another number of ranks, or ""."""
    starts = [line for line in read_metrics(config.output_dir) if line.get("type") == "start"]
    before, now = starts[-1].get("sequence_parallel_size", 1) if starts else 1, config.sequence_parallel_size
    if not starts or before == now:
        return ""
    return f"train.sequence_parallel_size: {before} -> {now}: numbers may differ in their last digits"


def _conversions(found: Checkpoint, world_size: int, split: int) -> Iterator[str]:
    """Yield why a checkpoint is converted."""
    if found.world_size != world_size:
        yield f"it was saved on {found.world_size} ranks, and {world_size} are running: converting it"
    if found.expert_parallel_size != split:
        yield f"its experts were split over {found.expert_parallel_size} ranks, now over {split}: converting it"


def identify(config: TrainConfig, prepared: Path, model_folder: Path) -> Identity:
    """Measure what would be trained: rows, model, and the width of a step."""
    rows, width = len(open_prepared(prepared).train), config.global_batch_size
    return identity_of(prepared, rows, model_folder, width, longest_first=config.training.longest_first)


def refuse_without_progress(folder: Path, step: int | None) -> None:
    """Refuse a further attempt when several in a row began at ``step`` and saved nothing.

    Raises:
        NoProgress: another attempt would only use up the allocation.
    """
    count = fruitless_attempts(read_metrics(folder), step)
    if count >= int(os.environ.get("QWEN_JOB_MAX_WITHOUT_PROGRESS") or _MOST_FRUITLESS):
        raise NoProgress(
            f"{count} attempts in a row began at step {step or 0} and ended before the next checkpoint; look at the "
            f"logs of the last one, or lower save_steps so that an attempt reaches a save, then run the job again"
        )


def _refuse_without_checkpoint(config: TrainConfig, log: RunLog) -> None:
    if config.folder.done.exists():
        raise JobError(
            f"train.resume: extend: {config.output_dir} has no checkpoint, and so no optimizer state: start from its "
            "model/ with another output"
        )
    if any(line["type"] == "save" for line in read_metrics(config.output_dir)):
        log.say("metrics.jsonl lists checkpoints, but none can be used: starting at step 1")
