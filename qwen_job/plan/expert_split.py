"""Decide over how many GPUs the experts of a mixture's layers are split, which the search has chosen, and say why."""

from __future__ import annotations

from qwen_job.errors import JobError
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.job import Job
from qwen_job.plan.decision import Ledger
from qwen_job.plan.estimate.speed import communication_bytes, routed_bytes
from qwen_job.plan.search.choice import Choice, layout_of
from qwen_job.plan.search.question import Question
from qwen_job.text import gib

_FIELD = "train.expert_parallel_size"


def written_split(job: Job) -> int | None:
    """Return the number of GPUs that the job splits experts over, or None: the plan chooses."""
    size = job.train.expert_parallel_size
    return None if size == "auto" else size


def refuse_split(job: Job, shape: ModelShape | None) -> None:
    """Refuse experts that cannot be split as the job asks.

    Raises:
        JobError: the model has none, or their number, the GPUs or the ZeRO stage do not allow it.
    """
    size, stage, gpus = written_split(job), job.deepspeed.zero_stage, job.cluster.world_size
    if size is None or size == 1:
        return
    problem = ""
    if shape is not None and shape.experts is None:
        problem = f"{shape.name} has no experts; remove the line, or take a mixture of experts"
    elif gpus % size:
        problem = f"{size} does not divide the {gpus} GPUs; write {_near(size, gpus)}"
    elif shape is not None and shape.experts is not None and shape.experts.count % size:
        problem = f"{size} does not divide the {shape.experts.count} experts of a layer; write "
        problem += _near(size, shape.experts.count, gpus)
    elif stage == 0:
        problem = f"{size} needs ZeRO, but deepspeed.zero_stage is 0; write zero_stage 1, 2 or 3"
    if problem:
        raise JobError([job.problem(("train", "expert_parallel_size"), problem)])


def decide_split(job: Job, question: Question | None, choice: Choice, ledger: Ledger) -> None:
    """Note the choice and its reason, for a mixture of experts."""
    if question is not None and question.shape.experts is not None:
        ledger.decide(_FIELD, written_split(job), choice.expert_parallel_size, _reason(question, choice))
    elif written_split(job) is not None:
        ledger.decide(_FIELD, written_split(job), 1, "")


def _reason(question: Question, choice: Choice) -> str:
    experts, size = question.shape.experts, choice.expert_parallel_size
    assert experts is not None, "called for mixtures only"
    if question.world_size == 1:
        return "one GPU has all experts"
    layout = layout_of(question, choice)
    sends = communication_bytes(
        question.shape,
        choice.zero_stage,
        question.world_size,
        question.precision,
        choice.gradient_accumulation_steps,
        size,
    )
    weights, tokens = f"{gib(int(sends))} of weights and gradients", f"{gib(int(routed_bytes(layout)))} of tokens"
    if size == 1:
        return f"every GPU computes all experts of a layer: a step sends {weights}"
    mine = f"{experts.count // size} of a layer's {experts.count} experts"
    return f"each GPU has {mine}: a step sends {weights}, {tokens}"


def _near(size: int, *numbers: int) -> str:
    """Return the nearest common divisors of ``numbers`` below and above ``size``, as words."""
    fitting = [other for other in range(2, min(numbers) + 1) if not any(number % other for number in numbers)]
    below, above = [other for other in fitting if other < size][-1:], [other for other in fitting if other > size][:1]
    return " or ".join(map(str, [*below, *above] or [1]))
