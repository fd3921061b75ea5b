"""Builds what a run needs before its first step: the model, the engine and the trainer's members."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import enable_tf32

from qwen_job.data import PackedRows, PreparedData, open_prepared
from qwen_job.errors import DataError, JobError
from qwen_job.facts.config_fields import unknown_fields
from qwen_job.facts.model_files import read_text_config
from qwen_job.models.completeness import left_out
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.folder import RunFolder
from qwen_job.run.signals import StopRequest
from qwen_job.toolchain import refuse_without_compiler
from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.activation_offloading import checkpoint_layers
from qwen_job.train.arguments import Arguments, eval_rows, read_arguments
from qwen_job.train.attention import window_of
from qwen_job.train.batches import Batch, Loader, Rows, StepSampler, collate, on_device
from qwen_job.train.checkpoints import Checkpointer
from qwen_job.train.compiling import Setting, compile_layers
from qwen_job.train.course import Course, Track
from qwen_job.train.deepspeed_config import expert_parallel_size, offloads_optimizer, zero_stage
from qwen_job.train.experts import Routing, coefficient_of, expert_notes, routers_of
from qwen_job.train.export import control_tokens, rehearse
from qwen_job.train.gradient_step import GradientStep
from qwen_job.train.guards import source_of
from qwen_job.train.intervals import Intervals
from qwen_job.train.loss import LossHead, Objective, exact_kind
from qwen_job.train.memory_saves import MemorySaves
from qwen_job.train.modeling import DTYPES, build_model, build_optimizer, shape_of
from qwen_job.train.packed_state import keep_documents_apart, linear_layers
from qwen_job.train.ranks import Ranks
from qwen_job.train.rate_schedule import Schedule, check_schedule
from qwen_job.train.remembered import Neighbourhood
from qwen_job.train.rendezvous import Place
from qwen_job.train.reporters import Run, build_reporters
from qwen_job.train.resume import Beginning, Resume, reads_weights
from qwen_job.train.run_state import RunState
from qwen_job.train.runlog import RunLog
from qwen_job.train.save_interval import History
from qwen_job.train.saver import Saver, restore_random_state
from qwen_job.train.sequence_parallel import check_shared, share_rows, slice_of
from qwen_job.train.step_guard import StepGuard
from qwen_job.train.straggler import OwnTime
from qwen_job.train.tiled_mlp import tile_mlps
from qwen_job.train.trainer import Parts, Trainer
from qwen_job.train.watchdog import Watchdog

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


class Attempt(NamedTuple):
    """One attempt of a run: its settings, this rank's place, and what it reports to and hears from."""

    config: TrainConfig
    deepspeed: DeepSpeedConfig
    place: Place
    store: Store
    stop_request: StopRequest
    log: RunLog
    around: Neighbourhood | None = None
    history: History | None = None


class Loaded(NamedTuple):
    """The model and the rows of a run, loaded on this rank."""

    model: Any
    arguments: Arguments
    data: PreparedData
    model_folder: Path


def load(attempt: Attempt, model_folder: Path, prepared: Path, resume: Resume | None) -> Loaded:
    """Open the rows and load the model, each rank its part; rank 0 rehearses the export.

    ``resume``: a checkpoint that its weights come from.

    Raises:
        JobError: a setting of the training cannot be used.
        DataError: there is no row to train on.
        ModelError: the model cannot be loaded, or not exported after training.
        EnvironmentFault: a setting compiles kernels, and this node has no compiler.
    """
    config, log = attempt.config, attempt.log
    refuse_without_compiler(config.torch_compile, config.fused_loss, config.device)
    transformers_logging.disable_progress_bar()
    arguments, notes = read_arguments(config)
    if arguments.tf32 is not None:
        enable_tf32(arguments.tf32)
    data = open_prepared(prepared)
    if len(data.train) == 0:
        raise DataError(f"{prepared}: no rows to train on are left after preparation; run qwen-job data check")
    notes += _report_left_out(config, data, log)
    model = build_model(config, attempt.deepspeed, model_folder, reads_weights=reads_weights(attempt.deepspeed, resume))
    if unknown := unknown_fields(read_text_config(model_folder)):
        notes.append(f"config.json: {', '.join(unknown)}: not known to transformers' model, and ignored")
    notes += left_out(model_folder, kept=config.export == "original")
    check_shared(config, arguments, model)
    notes += rehearse(model, model_folder, config) if attempt.place.is_first else []
    for note in notes:
        log.say(note)
    return Loaded(model, arguments, data, model_folder)


def hardware(device: str) -> str:
    """Return the name of this process's GPU, or the processor's kind."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({os.uname().machine})"


def build_trainer(attempt: Attempt, loaded: Loaded, beginning: Beginning, watchdog: Watchdog) -> Trainer:
    """Return a trainer at the step where the run begins or resumes. A collective of all ranks.

    Raises:
        JobError: the run would end before it begins, or its schedule does not fit its length.
    """
    config, log, place = attempt.config, attempt.log, attempt.place
    model, arguments, data = loaded.model, loaded.arguments, loaded.data
    resume, identity = beginning
    _seed(config.seed, full_determinism=arguments.full_determinism)
    _set_log_level(arguments, place)
    device = _device(config, place)
    size = config.sequence_parallel_size
    ranks = Ranks(place.rank, place.world_size, device, size)
    heads = share_rows(model, config.attention, ranks)
    for line in keep_documents_apart(model, device, DTYPES[config.precision], heads):
        log.say(line)
    objective = Objective(
        LossHead(model, _fused_loss(config, log)),
        "varlen" if size > 1 else config.attention,
        DTYPES[config.precision],
        window_of(model.config),
        linear=bool(linear_layers(model)),
    )
    shape, pad_id = shape_of(model), control_tokens(loaded.model_folder).get("<|endoftext|>", 0)
    track = _track(config, identity.course, len(data.train), ranks.groups)
    state = RunState.load(resume.path) if resume else RunState()
    state.max_steps = log.total_steps = _total_steps(config, track, resume.step if resume else None)
    check_schedule(config, arguments, state.max_steps)
    coefficient = coefficient_of(model, config)
    for line in expert_notes(model, coefficient, config.training.gradient_accumulation_steps, device):
        log.say(line)
    engine = _engine(attempt, model, arguments)
    setting = Setting(config, attempt.deepspeed, place, attempt.store, ranks, log)
    rehearsals = _rehearsals(config, arguments, data, partial(objective, engine.module), ranks, pad_id)
    compiled = compile_layers(setting, engine.module, loaded.model_folder, rehearsals, resume.step if resume else 0)
    shape_of_rows = (config.data.max_length if compiled else 1, size)  # compiled layers want one shape
    schedule = Schedule(config, arguments, engines.torch_optimizer(engine), state.max_steps)
    if resume:
        engines.load_checkpoint(engine, resume.path, config)
        schedule.load(resume.path)
    if note := schedule.renew(state.global_step + 1):
        log.say(note)
    if place.is_first:
        # A run that is being extended is no longer complete. Every rank has looked for the file by now.
        config.folder.done.unlink(missing_ok=True)
    checkpointer = Checkpointer(
        config.folder.checkpoints,
        zero_stage=zero_stage(attempt.deepspeed),
        expert_parallel_size=expert_parallel_size(attempt.deepspeed),
        background=_has_room_aside(config, attempt.deepspeed),
        guard=log.guard,
    )
    kept = resume.step if resume and resume.in_memory else None
    every = config.training.memory_save_steps
    memory = MemorySaves(attempt.around, every, ranks, kept, attempt.history) if attempt.around else None
    if memory is not None and memory.reason:
        log.say(memory.reason)
    saver = Saver(
        config, checkpointer, engine, schedule, state, identity, ranks, log, resume.saved if resume else None, memory
    )
    own_time = OwnTime(device, counts_forward=_computes_alone(attempt.deepspeed) and size == 1)
    routing = Routing(engine.module, coefficient, ranks) if routers_of(model) else None
    named = partial(source_of, data.train, files=data.files)
    parts = Parts(
        config=config,
        arguments=arguments,
        ranks=ranks,
        engine=engine,
        gradients=GradientStep(engine, objective, routing, ranks, pad_id, own_time),
        shape=shape,
        train_rows=training_rows(
            config, arguments, data.train, ranks, pad_id, shape_of_rows, longest_rows(data.train, identity.longest)
        ),
        held_out_rows=partial(held_out_rows, config, arguments, data.eval, ranks, pad_id, shape_of_rows),
        track=track,
        state=state,
        schedule=schedule,
        intervals=Intervals(config, arguments, len(data.train), state.max_steps),
        guard=StepGuard(config, ranks, log, source_of=named, settle=saver.settle),
        saver=saver,
        reporters=build_reporters(Run(config, arguments, model), first=place.is_first, say=log.say),
        log=log,
        stop_request=attempt.stop_request,
        watchdog=watchdog,
        own_time=own_time,
        restore_random_state=partial(restore_random_state, resume.path, ranks) if resume else lambda: None,
        resumed=resume is not None,
    )
    return Trainer(parts)


def _device(config: TrainConfig, place: Place) -> torch.device:
    return torch.device("cuda", place.local_rank) if config.device == "cuda" else torch.device("cpu")


def _rehearsals(
    config: TrainConfig,
    arguments: Arguments,
    data: PreparedData,
    loss: Callable[[Batch], torch.Tensor],
    ranks: Ranks,
    pad_id: int,
) -> list[Callable[[], torch.Tensor]]:
    """Return what computes the loss of a training batch and, if the run evaluates, of a held-out one."""

    def of(rows: PackedRows, size: int) -> torch.Tensor:
        items = [(number % len(rows), rows[number % len(rows)]) for number in range(size)]
        batch = slice_of(collate(items, pad_id, config.data.max_length), ranks)
        return loss(on_device(batch, ranks.device))

    found = [partial(of, data.train, config.training.per_device_train_batch_size)]
    if config.evaluates and len(data.eval):
        found.append(partial(of, data.eval, eval_rows(config, arguments)))
    return [*found]


def training_rows(
    config: TrainConfig,
    arguments: Arguments,
    rows: Rows,
    ranks: Ranks,
    pad_id: int,
    shape: tuple[int, int] = (1, 1),
    first_rows: Sequence[int] = (),
) -> Loader:
    """Return this rank's micro-batches: one permutation of the rows an epoch, dealt to steps whatever the ranks.

    ``shape``: tokens that a row has at least, pads counted, and what their number is a multiple of. ``first_rows``:
    those that the first epoch begins with.
    """
    training = config.training
    seed = config.seed if arguments.data_seed is None else arguments.data_seed
    micro, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
    sampler = StepSampler(len(rows), micro, accumulation, ranks.group, ranks.groups, seed)
    sampler.leave_out(config.guards.skip_rows)
    sampler.begin_with(first_rows)
    return _loader(config, arguments, rows, sampler, pad_id, shape, training.dataloader_num_workers)


def longest_rows(rows: PackedRows, count: int) -> list[int]:
    """Return the numbers of the ``count`` longest rows, the longest first."""
    return np.argsort(-rows.row_lengths().astype(np.int64), kind="stable")[:count].tolist() if count else []


def held_out_rows(
    config: TrainConfig,
    arguments: Arguments,
    rows: Rows,
    ranks: Ranks,
    pad_id: int,
    shape: tuple[int, int] = (1, 1),
) -> Loader:
    """Return this rank's held-out micro-batches, in the rows' own order."""
    micro = eval_rows(config, arguments)
    sampler = StepSampler(len(rows), micro, 1, ranks.group, ranks.groups, None)
    return _loader(config, arguments, rows, sampler, pad_id, shape, 0)


def _loader(
    config: TrainConfig,
    arguments: Arguments,
    rows: Rows,
    sampler: StepSampler,
    pad_id: int,
    shape: tuple[int, int],
    workers: int,
) -> Loader:
    return Loader(
        rows,
        sampler,
        pad_id,
        workers,
        config.device == "cuda" and arguments.dataloader_pin_memory,
        shape[0],
        multiple=shape[1],
        prefetch=arguments.dataloader_prefetch_factor,
        persistent=arguments.dataloader_persistent_workers,
    )


def _engine(attempt: Attempt, model: Any, arguments: Arguments) -> engines.Engine:
    config = attempt.config
    if config.gradient_checkpointing:
        checkpoint_layers(model, offload=config.activation_offloading)
    if config.tiled_mlp:
        tile_mlps(model, gathers=zero_stage(attempt.deepspeed) == 3)
    if arguments.neftune_noise_alpha is not None:
        from transformers.integrations.neftune import activate_neftune

        activate_neftune(model, arguments.neftune_noise_alpha)
    optimizer = build_optimizer(model, config, attempt.deepspeed)
    return engines.build_engine(model, optimizer, attempt.deepspeed)


def _track(config: TrainConfig, course: Course, rows: int, groups: int) -> Track:
    micro = config.training.per_device_train_batch_size * groups
    return Track(course, rows, micro, config.global_batch_size)


def _total_steps(config: TrainConfig, track: Track, saved: int | None) -> int:
    """Return the step that ends the run.

    Raises:
        JobError: the checkpoint is past the end, or at the end of a complete run that was to be extended.
    """
    training, output, step = config.training, config.output_dir, saved or 0
    by_steps = training.max_steps > 0
    field = "max_steps" if by_steps else "num_train_epochs"
    wanted = training.max_steps if by_steps else training.num_train_epochs
    total = training.max_steps if by_steps else track.course.end(wanted, track.rows, track.width)
    if step > total:
        raise JobError(
            f"train.{field}: {wanted:g} ends before step {step}, which {output} has already saved; raise it, or use "
            "another output"
        )
    if step == total and RunFolder(output).done.exists():
        raise JobError(f"train.{field}: {wanted:g} is step {step}, where {output} is complete: nothing to extend")
    return total


def _seed(seed: int, *, full_determinism: bool) -> None:
    """Seed Python, numpy and torch on all devices; with ``full_determinism`` choose deterministic kernels, too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if not full_determinism:
        return
    for name, value in (("CUDA_LAUNCH_BLOCKING", "1"), ("CUBLAS_WORKSPACE_CONFIG", ":16:8")):
        os.environ[name] = value
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def _set_log_level(arguments: Arguments, place: Place) -> None:
    """Give transformers and DeepSpeed ``log_level``, or ``log_level_replica`` but on the first rank of a node."""
    from deepspeed.utils import logger

    name = arguments.log_level_replica if place.local_rank else arguments.log_level
    level = _LEVELS.get(name, transformers_logging.get_verbosity())  # passive: as it is
    transformers_logging.set_verbosity(level)
    logger.setLevel(level)


def _report_left_out(config: TrainConfig, data: PreparedData, log: RunLog) -> list[str]:
    notes, rows = [], data.train
    for row in config.guards.skip_rows:
        if row >= len(rows):
            raise JobError(f"train.skip_rows: {row}: there are {len(rows)} rows, from 0 to {len(rows) - 1}")
        log.write("guard", 0, action="leave out", rows=[row])
        source = source_of(rows, row, data.files)
        notes.append(f"train.skip_rows: row {row} ({source}) is skipped in every epoch")
    return notes


def _fused_loss(config: TrainConfig, log: RunLog) -> str:
    kind = exact_kind(config.fused_loss, config.precision)
    if kind != config.fused_loss:
        log.say(f"fused_loss: {kind} instead of {config.fused_loss}, whose loss has only 16 bits in {config.precision}")
    return kind


def _computes_alone(deepspeed: DeepSpeedConfig) -> bool:
    """Tell whether a forward pass waits for no other rank."""
    return zero_stage(deepspeed) < 3 and expert_parallel_size(deepspeed) == 1


def _has_room_aside(config: TrainConfig, deepspeed: DeepSpeedConfig) -> bool:
    """Tell whether a copy of the state fits host memory: not if the optimizer state is in host memory anyway."""
    return config.device == "cuda" and not offloads_optimizer(deepspeed)
