"""The Plan: every number decided, each with its reason. A pure function of the Job and the facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from qwen_job.errors import JobError, ModelError, Problem
from qwen_job.facts.choices import MemorySaveSteps, TorchCompile
from qwen_job.facts.config_fields import too_long
from qwen_job.facts.hardware import Gpu, load_gpu, other_sizes
from qwen_job.facts.lookup import UnknownName
from qwen_job.facts.model_shapes import ModelShape, load_model_shape, misspelt
from qwen_job.facts.positions import base_length
from qwen_job.facts.untrained import why_untrained
from qwen_job.job import Job
from qwen_job.job.document import dotted
from qwen_job.job.model import CustomGpu
from qwen_job.job.types import unclear_time
from qwen_job.plan.advice import RunNumbers, warnings_for
from qwen_job.plan.batch import Batch, decide_batch, rows_per_gpu
from qwen_job.plan.decision import Decision, Ledger
from qwen_job.plan.deepspeed import deepspeed_config
from qwen_job.plan.disk_space import DiskRoom, disk_needed, disk_warning
from qwen_job.plan.environment import environment
from qwen_job.plan.estimate.memory import MemoryEstimate
from qwen_job.plan.estimate.speed import SpeedEstimate
from qwen_job.plan.expert_split import decide_split, refuse_split
from qwen_job.plan.in_memory import decide_memory_saves, shared_memory
from qwen_job.plan.long_rows import decide_long_rows, never_compiled
from qwen_job.plan.precision import (
    decide_attention,
    decide_fused_loss,
    decide_precision,
    decide_torch_compile,
    refuse_settings,
)
from qwen_job.plan.reasoning import decide_thinking
from qwen_job.plan.schedule import DataSize, RunPlan, data_of, plan_run
from qwen_job.plan.search.choice import Answer, Choice, Runner
from qwen_job.plan.search.question import Question
from qwen_job.plan.search.sharding import (
    choose_for,
    least_rows,
    question_of,
    reason_of,
    reference_choice,
    refuse_contradictions,
    refuse_sharing,
    sharing_of,
)
from qwen_job.text import GIB


class SweptRun(NamedTuple):
    """One run of a sweep: its folder below the job's output, the values that make it, its plan."""

    folder: str
    values: dict[str, Any]
    plan: Plan


class SweepRuns(NamedTuple):
    """The sweep that a plan is one run of: its folder and name, and the folder and values of each of its runs."""

    folder: str
    name: str
    runs: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Plan:
    """A job with every number decided.

    ``uncounted`` says why the training data was not counted, where that was wanted; ``refuses_data``: the data has rows
    that the run would refuse, which ``warnings`` name. ``swept``: the sweep that the plan is one run of.
    """

    job: Job
    gpu: Gpu
    shape: ModelShape | None
    interconnect: str
    precision: str
    attention: str
    fused_loss: str
    torch_compile: TorchCompile
    memory_save_steps: MemorySaveSteps
    choice: Choice
    batch: Batch
    deepspeed_config: dict[str, Any]
    env: dict[str, str]
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]
    question: Question | None = None
    runners_up: Sequence[Runner] = ()
    considered: int = 0
    run: RunPlan | None = None
    sweep: tuple[SweptRun, ...] = ()
    swept: SweepRuns | None = None
    uncounted: str = ""
    refuses_data: bool = False

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.job.cluster.nodes

    @property
    def gpus_per_node(self) -> int:
        """Processes on each machine, one per GPU."""
        return self.job.cluster.gpus_per_node

    @property
    def world_size(self) -> int:
        """Processes in total."""
        return self.job.cluster.world_size

    @property
    def memory(self) -> MemoryEstimate | None:
        """The memory estimate without prepared data, which ``run.memory`` has, too; None for an unknown model."""
        return self.choice.memory and self.choice.memory.as_exported(self.job.train.export)

    @property
    def speed(self) -> SpeedEstimate | None:
        """The choice's speed with full rows (``run.speed`` is for the data at hand); None where it is unknown."""
        return self.choice.speed


def make_plan(
    job: Job,
    *,
    data: DataSize | None = None,
    disk: DiskRoom | None = None,
    shapes: Mapping[str, ModelShape] = MappingProxyType({}),
) -> Plan:
    """Decide everything about a job.

    ``data`` (default: the sizes in the job) and ``disk``, the room for the output, affect only the time estimate and
    the warnings.

    Raises:
        JobError: settings contradict each other, or the job does not fit.
    """
    ledger = Ledger()
    gpu = gpu_of(job)
    refuse_settings(job, gpu)
    shape, warnings = _shape(job, shapes)
    warnings += [*_other_gpus(job, gpu), *_unclear_times(job)]
    interconnect = _interconnect(job, ledger)
    precision = decide_precision(job, gpu, ledger)
    attention = decide_attention(job, gpu, precision, ledger, shape.attention_dropout if shape else 0.0)
    fused_loss = decide_fused_loss(job, gpu, precision, ledger)
    warnings += decide_thinking(job, ledger)
    _decide_export(job, shape, ledger)
    refuse_sharing(job, shape, attention)
    rows = least_rows(job)
    refuse_contradictions(job, gpu.is_cpu)
    refuse_split(job, shape)
    question, answer, run = None, Answer(None), None
    if shape is None:
        choice = reference_choice(job, rows, gpu.is_cpu)
        reason = "the model's shape is unknown: same as the reference script"
    else:
        question = question_of(
            job, gpu, shape, rows=rows, precision=precision, attention=attention, fused_loss=fused_loss
        )
        choice, answer = choose_for(job, question)
        reason = reason_of(question, answer)
    _note_choice(job, choice, reason, ledger)
    size = choice.sequence_parallel_size
    written = None if job.train.sequence_parallel_size == "auto" else job.train.sequence_parallel_size
    ledger.decide("train.sequence_parallel_size", written, size, sharing_of(question, choice))
    decide_split(job, question, choice, ledger)
    warnings += decide_long_rows(job, question, choice, ledger)
    never = never_compiled(shape, choice)
    torch_compile = decide_torch_compile(job, gpu, choice.zero_stage, ledger, shared=size > 1, never=never)
    memory_save_steps, choice = decide_memory_saves(job, question, choice, ledger)
    if question is not None:
        run = plan_run(job, question, choice, data or data_of(job), compiles=torch_compile is not False)
    batch = decide_batch(job, ledger, rows_per_gpu(job, size), choice.micro_batch_size, reason, size)
    if job.train.begins_with_longest or job.train.longest_first is not None:
        reason = "a lack of memory for rows this long shows in the first step"
        ledger.decide("train.longest_first", job.train.longest_first, job.train.begins_with_longest, reason)
    if question is not None and run is not None:
        warnings += _warnings(job, question, choice, run)
    own = tuple(warnings)
    sweep = _swept(job, data, shapes)
    runs = [(job, run)] if not sweep else [(one.plan.job, one.plan.run) for one in sweep]
    needed = disk_needed(job.output, [(each, found.memory) for each, found in runs if found])
    return Plan(
        job=job,
        gpu=gpu,
        shape=shape,
        interconnect=interconnect,
        precision=precision,
        attention=attention,
        fused_loss=fused_loss,
        torch_compile=torch_compile,
        memory_save_steps=memory_save_steps,
        choice=choice,
        batch=batch,
        deepspeed_config=deepspeed_config(job, choice, precision, batch),
        env=environment(job, gpu, interconnect),
        decisions=tuple(ledger.decisions),
        warnings=(*own, *disk_warning(job.output, needed, len(runs), disk), *_only_there(sweep, own)),
        question=question,
        runners_up=answer.runners_up,
        considered=answer.considered,
        run=run,
        sweep=sweep,
    )


def _swept(job: Job, data: DataSize | None, shapes: Mapping[str, ModelShape]) -> tuple[SweptRun, ...]:
    """Plan every run of the sweep.

    Raises:
        JobError: lists the problems of all runs.
    """
    listed = SweepRuns(job.output, job.name, tuple((point.folder, point.values) for point in job.points))
    runs: list[SweptRun] = []
    problems: dict[str, Problem] = {}
    for point in job.points:
        try:
            plan = make_plan(point.job, data=data, shapes=shapes)
        except JobError as error:
            for problem in map(point.blame, error.problems):
                problems.setdefault(problem.field, problem)
            continue
        runs.append(SweptRun(point.folder, point.values, replace(plan, swept=listed)))
    if problems:
        raise JobError(list(problems.values()))
    return tuple(runs)


def _only_there(runs: tuple[SweptRun, ...], known: tuple[str, ...]) -> list[str]:
    """Return the warnings that only runs of the sweep have, each with the first run that has it."""
    found: dict[str, str] = {}
    for run in runs:
        for warning in run.plan.warnings:
            if warning not in known:
                found.setdefault(warning, run.folder)
    return [f"{warning} (in the run {folder})" for warning, folder in found.items()]


def question_for(job: Job, gpu_name: str | None = None) -> Question:
    """Return the search's question for a job that need not fit, on the job's GPU or on another one that is known.

    Raises:
        JobError: the model's shape is unknown, or the GPU does not support what the job asks for.
    """
    ledger = Ledger()
    gpu = gpu_of(job) if gpu_name is None else load_gpu(gpu_name)
    shape, notes = _shape(job)
    if shape is None:
        raise JobError([job.problem(("model", "name"), notes[0].partition(": ")[2])])
    precision = decide_precision(job, gpu, ledger)
    # A fixed global batch is divided over every cluster size that is evaluated.
    fixed = job.train.global_batch_size is not None
    rows = 1 if fixed else least_rows(job)
    attention, loss = decide_attention(job, gpu, precision, ledger), decide_fused_loss(job, gpu, precision, ledger)
    asked = question_of(job, gpu, shape, rows=rows, precision=precision, attention=attention, fused_loss=loss)
    return replace(asked, micro_batch_size=job.train.per_device_train_batch_size) if fixed else asked


def gpu_of(job: Job) -> Gpu:
    """Return the GPU that the job names or describes.

    Raises:
        JobError: the name is unknown; suggests near ones.
    """
    written = job.cluster.gpu
    if isinstance(written, CustomGpu):
        return Gpu(
            name=written.name,
            memory_bytes=int(written.memory_gib * GIB),
            compute_capability=written.compute_capability,
            peak_tflops={str(name): peak for name, peak in written.peak_tflops.items()},
            memory_bandwidth_gbs=written.memory_bandwidth_gbs,
            nvlink_gbs=written.nvlink_gbs,
            pcie_gbs=written.pcie_gbs,
            source="the job",
        )
    try:
        gpu = load_gpu(written)
    except UnknownName as error:
        raise JobError([job.problem(("cluster", "gpu"), str(error))]) from None
    return gpu.of_cores(job.cluster.cpus_per_gpu or 1) if gpu.is_cpu else gpu


def _other_gpus(job: Job, gpu: Gpu) -> list[str]:
    """Return a warning for a GPU that is known with several memory sizes, of which the job names none."""
    written = job.cluster.gpu
    others = [] if isinstance(written, CustomGpu) else other_sizes(written, gpu)
    if not others:
        return []
    return [f"cluster.gpu: {written} is planned as {gpu.name}; {' and '.join(others)} is known, too: write which one"]


def _unclear_times(job: Job) -> list[str]:
    """Return a warning for each time limit that sbatch does not read as it looks."""
    fields = (("slurm", "time"), ("evaluate", "time"))
    found = ((dotted(field), unclear_time(job.text_of(*field))) for field in fields)
    return [f"{name}: {message}" for name, message in found if message]


def _shape(job: Job, shapes: Mapping[str, ModelShape] = MappingProxyType({})) -> tuple[ModelShape | None, list[str]]:
    name = job.model.name
    try:
        shape = shapes[name] if name in shapes else load_model_shape(name)
    except UnknownName as error:
        reason = str(error) if job.model.resolved_source == "random" else why_untrained(name)
        if reason and job.model.resolved_source != "local":
            raise JobError([job.problem(("model", "name"), reason)]) from None
        if job.model.resolved_source == "local":
            text = f"{name}: this machine cannot read a model there, so memory is not estimated"
        else:
            fix = misspelt(name) or "; name a local folder for an estimate"
            text = f"{name}: its config is unknown, so memory is not estimated{fix}"
        return None, [f"model.name: {text}"]
    except (JobError, ModelError) as error:
        raise JobError([job.problem(("model", "name"), str(error))]) from None
    if job.train.router_aux_loss_coef and not shape.experts:
        message = f"{name} has no experts; remove the field, or take a mixture of experts"
        raise JobError([job.problem(("train", "router_aux_loss_coef"), message)])
    shape = _scaled(job, shape)
    if shape.longest_row is not None and job.train.model_max_length > shape.longest_row:
        message = too_long(job.train.model_max_length, shape.longest_row)
        raise JobError([job.problem(("train", "model_max_length"), message)])
    return shape, []


def _scaled(job: Job, shape: ModelShape) -> ModelShape:
    """Return the shape with the positions that model.rope_scaling gives it.

    Raises:
        JobError: the scaling would not be part of what is exported.
    """
    scaling = job.model.rope_scaling
    if scaling is None:
        return shape
    if job.train.export == "original":
        message = "is written into the text model's config, and train.export: original keeps the folder's; write text"
        raise JobError([job.problem(("model", "rope_scaling"), message)])
    base = scaling.original_max_position_embeddings or base_length(shape.max_position_embeddings)
    return replace(
        shape, max_position_embeddings=round(base * scaling.factor), rope_factor=scaling.factor, longest_row=None
    )


def _decide_export(job: Job, shape: ModelShape | None, ledger: Ledger) -> None:
    """Note what model/ will hold, where the model may come from a vision-language folder.

    Raises:
        JobError: the original folder is wanted, and the model's cannot hold more than the text model.
    """
    written = job.train.export if job.wrote("train", "export") else None
    if shape is not None and shape.linear:
        reason = "the text model alone; original keeps the vision tower of the model's folder, which is not trained"
        ledger.decide("train.export", written, "text", reason)
    elif shape is not None and written == "original":
        message = f"original is for models with a vision tower, and {shape.name} has none; remove the line"
        raise JobError([job.problem(("train", "export"), message)])


def _interconnect(job: Job, ledger: Ledger) -> str:
    written = None if job.cluster.interconnect == "auto" else job.cluster.interconnect
    if job.cluster.nodes == 1:
        return str(ledger.decide("cluster.interconnect", written, "none", "one node"))
    return str(ledger.decide("cluster.interconnect", written, "auto", "NCCL finds the fastest network"))


def _note_choice(job: Job, choice: Choice, why: str, ledger: Ledger) -> None:
    ledger.decide("deepspeed.zero_stage", job.deepspeed.zero_stage, choice.zero_stage, why)
    ledger.decide("deepspeed.offload_optimizer", job.deepspeed.offload_optimizer, choice.offload_optimizer, why)
    ledger.decide("train.gradient_checkpointing", job.train.gradient_checkpointing, choice.gradient_checkpointing, why)


def _warnings(job: Job, question: Question, choice: Choice, run: RunPlan) -> list[str]:
    # New weights need other learning rates, and overfitting is often the point of such a run.
    fresh = job.model.resolved_source == "random"
    numbers = RunNumbers(
        learning_rate=RunNumbers.learning_rate if fresh else job.train.learning_rate,
        num_train_epochs=job.train.num_train_epochs,
        max_steps=job.train.max_steps,
        samples=run.data.samples if run.data and not fresh else None,
        eval_split=0.0 if job.data.eval else job.data.eval_split,
        held_out=bool(job.data.eval or job.data.eval_split),
        stops_early=job.train.early_stopping_patience is not None,
        rows=None if fresh else run.rows_per_epoch,
        total_seconds=run.estimate.total_seconds[1] if run.estimate else None,
        time_limit_seconds=job.slurm.time,
        save_seconds=run.estimate.save_seconds if run.estimate else RunNumbers.save_seconds,
        max_retries=job.retry.max_retries,
        shm_bytes=shared_memory(job),
    )
    return [str(warning) for warning in warnings_for(question, choice._replace(memory=run.memory), numbers)]
