"""What holds a long row on a GPU: tiled feed-forward networks, and checkpoints in host memory."""

from __future__ import annotations

from dataclasses import replace

from qwen_job.errors import JobError
from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.facts.compiling import MIXTURE, TILED
from qwen_job.facts.model_shapes import ModelShape
from qwen_job.job import Job
from qwen_job.plan.decision import Ledger
from qwen_job.plan.search.choice import Choice, choose
from qwen_job.plan.search.question import Question

_TILED, _AWAY = "train.tiled_mlp", "train.activation_offloading"


def refuse_long_rows(job: Job, shape: ModelShape | None) -> None:
    """Refuse what would have no effect, or is not exact.

    Raises:
        JobError: experts are to be tiled, or checkpoints offloaded where there are none.
    """
    train = job.train
    if train.tiled_mlp is True and shape is not None and shape.experts:
        message = f"true: {shape.name} is a mixture of experts, which compute few tokens each; write auto or false"
        raise JobError([job.problem(("train", "tiled_mlp"), message)])
    if train.activation_offloading is True and train.gradient_checkpointing is False:
        message = "true: only checkpoints are offloaded, and there are none; write gradient_checkpointing: true"
        raise JobError([job.problem(("train", "activation_offloading"), message)])


def decide_long_rows(job: Job, question: Question | None, choice: Choice, ledger: Ledger) -> list[str]:
    """Note both choices where rows are longer than a tile, or the job asks for one; return what has no effect."""
    train, found = job.train, []
    length = train.model_max_length * choice.micro_batch_size // choice.sequence_parallel_size
    long = length > TILE_TOKENS
    if long or train.tiled_mlp != "auto":
        written = None if train.tiled_mlp == "auto" else train.tiled_mlp
        ledger.decide(_TILED, written, choice.tiled_mlp, _why_tiled(question, choice))
    if long or train.activation_offloading != "auto":
        written = None if train.activation_offloading == "auto" else train.activation_offloading
        ledger.decide(_AWAY, written, choice.activation_offloading, _why_away(question, choice))
    if choice.tiled_mlp and not long:
        found.append(f"{_TILED}: no effect: a GPU has {length:,} tokens at once, and a tile {TILE_TOKENS:,}")
    if choice.activation_offloading and question is not None and question.gpu.is_cpu:
        found.append(f"{_AWAY}: no effect: a CPU job's activations are in host memory anyway")
    return found


def never_compiled(shape: ModelShape | None, choice: Choice) -> str:
    """Return why layers of this layout are compiled on no device, or ""."""
    if shape is not None and shape.experts is not None:
        return MIXTURE
    return TILED if choice.tiled_mlp else ""


def _why_tiled(question: Question | None, choice: Choice) -> str:
    if choice.tiled_mlp:
        why = _faster(choice, question and replace(question, tiled_mlp=False)) or "rows do not fit otherwise"
        return f"{why}: the wide values of a layer exist for a tile only"
    if question is not None and question.shape.experts:
        return "not for mixtures of experts"
    return "not needed for rows to fit"


def _why_away(question: Question | None, choice: Choice) -> str:
    if not choice.activation_offloading:
        return "not needed for rows to fit"
    return _faster(choice, question and replace(question, activation_offloading=False)) or "rows do not fit otherwise"


def _faster(choice: Choice, without: Question | None) -> str:
    """Return how much faster ``choice`` is than what fits ``without``; "" if nothing does, or speed is no reason."""
    if without is None or choice.offload_optimizer or choice.speed is None:
        return ""
    best = choose(replace(without, sequence_parallel_size=choice.sequence_parallel_size)).best
    if best is None or best.speed is None:
        return ""
    gain = choice.speed.tokens_per_second / best.speed.tokens_per_second - 1
    return f"estimated {gain:.0%} faster than {best}" if gain > 0 else ""
