"""Warnings about a plan that fits: what is likely to go wrong, and the fix."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from qwen_job.facts.model_names import is_qwen1_id
from qwen_job.facts.positions import base_length, factor_for
from qwen_job.plan.estimate.layout import DELTA_KERNELS_FROM
from qwen_job.plan.estimate.speed import fallback_seconds
from qwen_job.plan.search.choice import Choice, choose, layout_of
from qwen_job.plan.search.question import HOST_MARGIN, MARGIN, Question
from qwen_job.text import GIB

# Full fine-tuning of chat models is done with 1e-6 to 5e-5 (Qwen's scripts: 1e-5; Qwen2.5's report: 7e-6 to 7e-7).
USUAL_LEARNING_RATE = (5e-7, 5e-5)
FEWEST_STEPS_AN_EPOCH = 10
FEW_SAMPLES, MANY_EPOCHS = 1000, 3
SHM_BYTES_PER_GPU = 1 * GIB
SLOW_NETWORK_SHARE = 0.25
WORTH_IT = 1.25


class PlanWarning(NamedTuple):
    """One likely problem: the field of job.yaml, what is wrong with it, and the fix."""

    field: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}; {self.fix}"


@dataclass(frozen=True)
class RunNumbers:
    """What the warnings need besides the question and the choice; None means unknown and is not checked.

    ``samples`` counts conversations of one epoch, ``rows`` the rows that packing makes of them (default: as many);
    ``eval_split`` is the share of all conversations that is held out, and not among ``samples``. ``held_out`` tells
    whether there is evaluation data at all, ``stops_early`` whether its loss can end the run.
    Sizes are bytes, times seconds. ``restart_seconds`` is the time from a start to the first step, ``save_seconds``
    that of the last checkpoint.
    """

    learning_rate: float = 1e-5
    num_train_epochs: float = 1.0
    max_steps: int = -1
    samples: int | None = None
    eval_split: float = 0.0
    held_out: bool = False
    stops_early: bool = False
    rows: int | None = None
    total_seconds: float | None = None
    time_limit_seconds: float | None = None
    restart_seconds: float = 300.0
    save_seconds: float = 120.0
    max_retries: int | None = None
    shm_bytes: int | None = None


def warnings_for(question: Question, choice: Choice, run: RunNumbers) -> list[PlanWarning]:
    """Return every warning that applies, memory first, then speed, data and time. A pure function."""
    found = (
        _host(question, choice),
        _tight(question, choice),
        _slow_network(question, choice),
        _no_delta_kernels(question, choice),
        _small_batches(question, choice),
        _positions(question),
        _learning_rate(run),
        _global_batch(question, choice, run),
        _overfit(run),
        _nothing_held_out(run),
        _shm(question, run),
        _time_limit(run),
    )
    return [warning for warning in found if warning is not None]


def requeues(total_seconds: float, limit: float, restart_seconds: float, save_seconds: float) -> int | None:
    """Return how often a job must be requeued to finish, or None if the limit leaves no time to train."""
    useful = limit - restart_seconds - save_seconds
    return None if useful <= 0 else max(0, math.ceil(total_seconds / useful) - 1)


def bytes_of(quantity: str) -> int:
    """Return a Kubernetes quantity (16Gi, 512M) in bytes."""
    number = quantity.rstrip("mkKMGTPEi")
    unit = quantity[len(number) :]
    if unit == "m":
        return int(float(number) / 1000)
    power = "kMGTPE".index(unit[0].replace("K", "k")) + 1 if unit else 0
    return int(float(number) * (1024 if unit.endswith("i") else 1000) ** power)


def _host(question: Question, choice: Choice) -> PlanWarning | None:
    need, have = choice.needs.host_needed, question.host_memory_bytes
    if have is not None and need > have * (1 - HOST_MARGIN):
        message = f"a node needs about {need / GIB:.0f} GiB of host memory and has {have / GIB:.0f} GiB"
        fix = "use more nodes" + (", or deepspeed.offload_optimizer: false" if choice.offload_optimizer else "")
        return PlanWarning("cluster.memory_gib", message, fix)
    if have is None and choice.offload_optimizer:
        message = f"the optimizer on the host needs about {need / GIB:.0f} GiB of host memory on a node"
        return PlanWarning("cluster.memory_gib", message, "set it to have the plan check it")
    return None


def _tight(question: Question, choice: Choice) -> PlanWarning | None:
    """Warn where plan.margin leaves less than the default, which covers the estimate's errors."""
    memory = choice.needs
    if memory.capacity is None or memory.gpu_bytes <= memory.capacity * (1 - MARGIN):
        return None
    message = f"{memory.gpu_bytes / GIB:.1f} of {memory.capacity / GIB:.1f} GiB of the {question.gpu.name} are used"
    message += f", less than the {MARGIN:.0%} to spare that cover the estimate's errors"
    fix = f"remove plan.margin, or write {MARGIN:g}; a run that needs more than estimated ends out of memory"
    return PlanWarning("plan.margin", message, fix)


def _slow_network(question: Question, choice: Choice) -> PlanWarning | None:
    if choice.zero_stage != 3 or question.nodes == 1 or choice.speed is None:
        return None
    network = choice.speed.parts["network"]
    if network <= SLOW_NETWORK_SHARE * sum(choice.speed.parts.values()):
        return None
    message = f"ZeRO-3 gathers weights across nodes: {network:.1f} s of traffic for a step of {choice.speed.mid:.1f} s"
    fix = "use ZeRO-2 if the weights fit one GPU, a larger micro-batch, or a faster network (cluster.network_gbs)"
    return PlanWarning("deepspeed.zero_stage", message, fix)


def _no_delta_kernels(question: Question, choice: Choice) -> PlanWarning | None:
    """Warn where linear attention runs as torch operations."""
    layout, linear = layout_of(question, choice), question.shape.linear
    if linear is None or layout.delta_kernels or question.gpu.is_cpu:
        return None
    cost = ""
    if choice.speed is not None:
        cost = f": about {fallback_seconds(layout, question.gpu, question.speed_constants):.1f} s of a step (estimate)"
    why = f"its {linear.layers} layers of linear attention run as torch operations in fp32{cost}; the kernels need"
    return PlanWarning(
        "cluster.gpu",
        f"{why} compute capability {DELTA_KERNELS_FROM:g}, {question.gpu.name} has {question.gpu.compute_capability:g}",
        "use a newer GPU, or a model without linear attention, e.g. Qwen3",
    )


def _small_batches(question: Question, choice: Choice) -> PlanWarning | None:
    """Warn about a micro-batch of the user's where another one computes the same step much faster."""
    if question.micro_batch_size is None or choice.speed is None:
        return None
    if choice.speed.rough:
        return None
    best = choose(replace(question, micro_batch_size=None)).best
    if best is None or best.speed is None or best.speed.tokens_per_second < WORTH_IT * choice.speed.tokens_per_second:
        return None
    ratio = best.speed.tokens_per_second / choice.speed.tokens_per_second
    message = (
        f"micro-batches of {choice.micro_batch_size} leave the {question.gpu.name} waiting ({choice.speed.bound_by})"
    )
    fix = (
        f"{best.micro_batch_size} with train.gradient_accumulation_steps {best.gradient_accumulation_steps} is the "
        f"same step {ratio:.1f} times as fast and fits"
    )
    return PlanWarning("train.per_device_train_batch_size", message, fix)


def _positions(question: Question) -> PlanWarning | None:
    """Warn of rows beyond the model's own length, and of YaRN for rows within it."""
    length, most, factor = question.sequence_length, question.shape.max_position_embeddings, question.shape.rope_factor
    base = base_length(round(most / factor))
    if factor > 1 and length <= base:
        message = (
            f"rows of {length} tokens are within the {base} of the model itself, and YaRN changes short texts, too"
        )
        return PlanWarning("model.rope_scaling", message, "remove it, or raise train.model_max_length")
    if length <= most:
        return None
    message = f"{length} tokens are more than the {most} that {question.shape.name} was trained for"
    if factor > 1:
        message = f"{length} tokens are more than the {most} of model.rope_scaling"
    fix = f"write {most} or less, or model.rope_scaling: {factor_for(length, base)} (YaRN, as Qwen's cards have it)"
    older = "; the dynamic NTK and logn attention of the first generation are not used here"
    return PlanWarning("train.model_max_length", message, fix + (older if is_qwen1_id(question.shape.name) else ""))


def _learning_rate(run: RunNumbers) -> PlanWarning | None:
    low, high = USUAL_LEARNING_RATE
    if low <= run.learning_rate <= high:
        return None
    far = f"{run.learning_rate / high:.0f} times above" if run.learning_rate > high else "below"
    message = f"{run.learning_rate:g} is {far} the usual range for full fine-tuning ({low:g} to {high:g})"
    return PlanWarning("train.learning_rate", message, "start with 1e-5")


def _global_batch(question: Question, choice: Choice, run: RunNumbers) -> PlanWarning | None:
    available = run.samples if run.rows is None else run.rows
    if available is None:
        return None
    rows, groups = choice.global_batch_size(question.world_size), question.world_size // choice.sequence_parallel_size
    steps = available / rows
    if steps >= FEWEST_STEPS_AN_EPOCH:
        return None
    better = max(groups, available // FEWEST_STEPS_AN_EPOCH // groups * groups)
    message = f"{rows} rows a step make {steps:.1f} steps per epoch of {available} rows"
    fix = f"write {better}" if better < rows else "use fewer GPUs or more data"
    return PlanWarning("train.global_batch_size", message, fix)


def _overfit(run: RunNumbers) -> PlanWarning | None:
    if run.samples is None or run.max_steps > 0 or run.samples >= FEW_SAMPLES or run.num_train_epochs <= MANY_EPOCHS:
        return None
    if run.held_out and run.stops_early:
        return None
    message = f"{run.num_train_epochs:g} epochs over {run.samples} rows will overfit"
    data = "" if run.held_out else "data.eval_split with "
    return PlanWarning("train.num_train_epochs", message, f"write 2 or 3, or {data}train.early_stopping_patience")


def _nothing_held_out(run: RunNumbers) -> PlanWarning | None:
    if run.samples is None or not run.eval_split:
        return None
    rows = round(run.samples / (1 - run.eval_split))
    if rows * run.eval_split >= 1:
        return None
    message = (
        f"{run.eval_split:g} of {rows:,} rows is less than one row; if none is held out, the run ends with exit code 4"
    )
    return PlanWarning("data.eval_split", message, "write a larger share, or data.eval")


def _shm(question: Question, run: RunNumbers) -> PlanWarning | None:
    need = question.gpus_per_node * SHM_BYTES_PER_GPU
    if run.shm_bytes is None or question.gpus_per_node == 1 or run.shm_bytes >= need:
        return None
    message = f"/dev/shm has {run.shm_bytes / GIB:.2f} GiB; NCCL and the data loaders may need {need / GIB:.0f} GiB"
    return PlanWarning(
        "/dev/shm", message, f"write kubernetes.shm_size: {need / GIB:.0f}Gi, or --shm-size in other containers"
    )


def _time_limit(run: RunNumbers) -> PlanWarning | None:
    if run.total_seconds is None or run.time_limit_seconds is None:
        return None
    times = requeues(run.total_seconds, run.time_limit_seconds, run.restart_seconds, run.save_seconds)
    hours = run.time_limit_seconds / 3600
    if times is None:
        least = math.ceil((run.restart_seconds + run.save_seconds) / 60 * 2)
        return PlanWarning(
            "slurm.time",
            f"{hours:.1f} h leave no time to train between start-up and saving",
            f"write {least} minutes or more",
        )
    if times == 0:
        return None
    message = f"about {run.total_seconds / 3600:.1f} h of training do not fit {hours:.1f} h: {times} requeues"
    if run.max_retries is not None and times > run.max_retries:
        return PlanWarning(
            "retry.max_retries", f"{message}, but {run.max_retries} are allowed", f"write {times + 2} or a longer limit"
        )
    return PlanWarning(
        "slurm.time", message, "each resumes from its last checkpoint; a longer limit avoids the restarts"
    )
