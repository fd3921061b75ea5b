"""Explain a value: a decision, a field of job.yaml, a DeepSpeed setting, an environment variable, an item of memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from qwen_job.errors import JobError, UsageError
from qwen_job.job import Job
from qwen_job.plan.compare import flatten
from qwen_job.plan.decision import Ledger
from qwen_job.plan.estimate.activations import IN_FLIGHT, layer_activation_bytes
from qwen_job.plan.estimate.speed import NETWORK
from qwen_job.plan.plan import Plan
from qwen_job.plan.precision import decide_attention, decide_fused_loss, decide_precision
from qwen_job.plan.search.choice import Choice, choose, layout_of
from qwen_job.text import GIB, nearest

# What each item of memory consists of; qwen_job/plan/estimate/memory.py has the formulas and their sources.
ITEMS = {
    "weights": "2 bytes per parameter (4 in fp32); ZeRO-3 shards them over all GPUs",
    "gradients": "2 bytes per parameter (4 in fp32); sharded from ZeRO-2, in host memory with offload",
    "master weights": "4 bytes per parameter: the fp32 copy that is updated; sharded from ZeRO-1",
    "optimizer": "8 bytes per parameter: Adam's two moments in fp32; sharded from ZeRO-1",
    "optimizer's temporaries": "copies of this GPU's gradients, one of them in fp32, during the optimizer step",
    "reduce buckets": "gradients being reduced: zero_optimization.reduce_bucket_size elements, twice that with overlap",
    "gathered weights": "gathered weights in use: at most zero_optimization.stage3_max_live_parameters",
    "offload staging": "the largest gradient, being copied to the host",
    "activations": "values saved for the backward pass of every layer; with checkpointing, only each layer's input",
    "one layer's backward": "one layer's activations (computed again with checkpointing) and gradients",
    "logits and loss": "vocabulary x tokens for the plain loss, one chunk of that for a fused loss",
    "held by the allocator": "freed blocks that fit no other use: env overrides expandable_segments, which avoids them",
    "fragmentation": "memory that the allocator cannot use, a share of the allocated bytes (plan.fragmentation)",
    "CUDA context": "CUDA itself, cuBLAS and kernels (plan.context_bytes)",
    "NCCL": "buffers of the collectives (plan.nccl_bytes)",
    "processes": "each training process without its model (plan.process_bytes)",
    "checkpoint copy": "a copy of the state to save, so that training continues while it is written",
    "states in memory": "in /dev/shm, for restarts: the newest state and the next, and as many of the neighbour's",
    "loading the weights": "one copy a node, mapped from the files by all its processes (one for each where they are "
    "converted: fp16, fp32); with ZeRO-1 and 2, two more for each process whose GPU cannot hold its weights twice, "
    "because DeepSpeed then flattens them in host memory",
    "offloaded optimizer": "12 bytes per parameter: this node's share of master weights and moments",
    "offloaded gradients": "this node's share of the gradients, in fp32 and in the precision",
    "offloaded activations": "the input of every layer, pinned, until backward needs it: each rounded up to a power of "
    "two (train.activation_offloading)",
    "pinned weights": "updated weights, being copied back to the GPU",
    "data and page cache": "the prepared data: 4 bytes per token and 40 per conversation, if the size is known",
    "prepared data": "4 bytes per token and 40 per conversation, in the run folder or data.cache_dir",
    "checkpoints": "weights, master weights and moments: train.save_total_limit checkpoints, and one being written",
    "model": "the final weights in the precision (a vision tower that train.export: original keeps is not counted)",
    "second copy at the end": "the trained weights, until they have replaced those of the original folder's copy",
}
_CHOSEN = {
    "deepspeed.zero_stage": "zero_stage",
    "deepspeed.offload_optimizer": "offload_optimizer",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.per_device_train_batch_size": "micro_batch_size",
    "train.sequence_parallel_size": "sequence_parallel_size",
    "train.expert_parallel_size": "expert_parallel_size",
    "train.tiled_mlp": "tiled_mlp",
    "train.activation_offloading": "activation_offloading",
}


# Fields that a rule about the device decides before the search, and their possible values.
_RULED = {
    "precision": ("precision", ("bf16", "fp16", "fp32")),
    "train.attention": ("attention", ("varlen", "sdpa", "eager")),
    "train.fused_loss": ("fused_loss", ("chunked", "torch", "liger", "none")),
}


@dataclass(frozen=True)
class Explanation:
    """A field's full name, its value and the reasons, the shortest first."""

    field: str
    value: Any
    reasons: tuple[str, ...]


def explain(plan: Plan, field: str) -> Explanation:
    """Explain one field by its full name or its last part.

    Raises:
        UsageError: the name is unknown (suggests the nearest) or ambiguous.
    """
    known = _known(plan)
    name = _resolve(field, list(known))
    value = known[name]
    decision = next((one for one in plan.decisions if one.field == name), None)
    if decision is not None:
        why = _origin(plan, name) if decision.written else decision.reason
        others = _by_rule(plan, name) if name in _RULED else _alternatives(plan, name)
        return Explanation(name, value, (why, *_description(name), *others))
    kind, _, rest = name.partition(".")
    if kind in ("memory", "host", "disk"):
        return Explanation(name, value, (ITEMS.get(rest, "see plan/estimate/memory.py"), *_by_layer(plan, rest)))
    if kind == "env":
        return Explanation(name, value, (_origin(plan, name, "a preset for this device and network"),))
    if name.startswith("deepspeed.config."):
        default = f"from qwen_job/facts/deepspeed/zero{plan.choice.zero_stage}.json, or by the plan"
        return Explanation(name, value, (_origin(plan, name, default),))
    if kind == "step":
        words = "seconds in an optimizer step before anything overlaps; qwen_job/plan/estimate/speed.py has the formula"
        over = (f"collectives, mostly over {plan.speed.link}",) if rest == NETWORK and plan.speed else ()
        return Explanation(name, value, (*over, words))
    return Explanation(name, value, (_origin(plan, name, "the default"), *_description(name)))


def _known(plan: Plan) -> dict[str, Any]:
    found = flatten(plan.job.model_dump(mode="json", exclude={"env"}))
    found |= flatten({"deepspeed": {"config": plan.deepspeed_config}})
    found |= {f"env.{name}": value for name, value in plan.env.items()}
    memory, speed = plan.run.memory if plan.run else None, plan.speed
    if memory is not None:
        for kind, items in (("memory", memory.gpu), ("host", memory.host), ("disk", memory.disk)):
            found |= {f"{kind}.{item}": f"{size / GIB:.2f} GiB" for item, size in items.items()}
    if speed is not None:
        found |= {f"step.{part}": f"{seconds:.3f} s" for part, seconds in speed.parts.items()}
    return found | {decision.field: decision.value for decision in plan.decisions}


def _resolve(field: str, known: list[str]) -> str:
    if field in known:
        return field
    ends = [name for name in known if name.endswith(f".{field}")]
    # The field of job.yaml is meant if DeepSpeed's file repeats it.
    ends = [name for name in ends if not name.startswith("deepspeed.config.")] or ends
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"--explain: {field!r} matches several fields: {', '.join(ends)}; write the full name of one")
    lasts = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = nearest(field, known, 3)
    near += [lasts[word] for word in nearest(field.rpartition(".")[2], lasts, 3)]
    near += [name for name in known if field.lower() in name.lower()]
    hint = f"did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?" if near else "'qwen-job plan' shows them"
    raise UsageError(f"--explain: no field {field!r}; {hint}")


def _origin(plan: Plan, name: str, otherwise: str = "written in the job") -> str:
    path = tuple(name.split("."))
    if not plan.job.wrote(*path):
        return otherwise
    at = plan.job.problem(path, "")
    return f"written in {at.source}" + (f", line {at.line}" if at.line else "")


def _description(name: str) -> list[str]:
    """Return the field's description in the types of job.yaml."""
    model: Any = Job
    field = None
    for part in name.split("."):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = field.annotation
    return [field.description] if field is not None and field.description else []


def _alternatives(plan: Plan, name: str) -> list[str]:
    """Return the search's choice if the field were free, and the results of its other values."""
    attribute, best = _CHOSEN.get(name), plan.choice
    if attribute is None or plan.question is None:
        return []
    lines = []
    free = choose(replace(plan.question, **{attribute: None}))  # type: ignore[arg-type]
    if getattr(plan.question, attribute) is not None and free.best is not None:
        same = getattr(free.best, attribute) == getattr(best, attribute)
        lines.append(f"if you remove it, the plan takes {'the same' if same else f'{free.best}{_speed(free.best)}'}")
    shown = {getattr(best, attribute)}
    for runner in free.runners_up:
        value = getattr(runner.choice, attribute)
        if value not in shown:
            shown.add(value)
            lines.append(f"{str(value).lower()}: {runner.why} ({runner.choice})")
    return lines


def _by_rule(plan: Plan, name: str) -> list[str]:
    """Return the best plan for each other value of a field that a rule decides."""
    attribute, values = _RULED[name]
    if plan.question is None:
        return []
    lines = []
    for value in values:
        if value == getattr(plan.question, attribute):
            continue
        refused = _refused(plan, name, value)
        asked = replace(plan.question, **{attribute: value})  # type: ignore[arg-type]
        best = None if refused else choose(asked).best
        if best is None:
            lines.append(f"{value}: {refused or 'does not fit'}")
        elif best.needs.gpu:
            room = f"{best.needs.gpu_bytes / GIB:.1f} GiB per GPU"
            lines.append(f"{value}: {room}{_speed(best) if name == 'precision' else ''} ({best})")
    return lines


def _refused(plan: Plan, name: str, value: str) -> str:
    """Return why the device does not support a value of such a field; empty if it does."""
    written: dict[str, Any] = {name.rpartition(".")[2]: value}
    if name == "precision":
        written = {kind: value == kind for kind in ("bf16", "fp16")}
    job = plan.job.model_copy(update={"train": plan.job.train.model_copy(update=written)})
    decide: Any = {"precision": decide_precision, "train.attention": decide_attention}
    rest = () if name == "precision" else (plan.precision,)
    last = (plan.shape.attention_dropout,) if plan.shape and name == "train.attention" else ()
    try:
        decide.get(name, decide_fused_loss)(job, plan.gpu, *rest, Ledger(), *last)
    except JobError as error:
        return error.problems[0].message
    return ""


def _by_layer(plan: Plan, item: str) -> list[str]:
    """Return each layer's share of the saved activations."""
    if item != "activations" or plan.shape is None or plan.question is None:
        return []
    layout, layers = layout_of(plan.question, plan.choice), plan.shape.num_hidden_layers
    whole = layer_activation_bytes(layout) / 2**20
    kept = layout.tokens * layout.element * plan.shape.hidden_size / 2**20 if layout.gradient_checkpointing else whole
    layers = min(IN_FLIGHT, layers) if layout.activation_offloading else layers
    most = "at most " if plan.shape.linear else ""
    words = (
        f"{layers} layers of {most}{kept:,.1f} MiB each for {layout.tokens:,} tokens with {layout.attention} attention"
    )
    return [words + (f"; without checkpointing {most}{whole:,.1f} MiB each" if layout.gradient_checkpointing else "")]


def _speed(choice: Choice) -> str:
    return f": {choice.speed.tokens_per_second:,.0f} tokens/s" if choice.speed else ""
