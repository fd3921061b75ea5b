"""Why a value is what it is: a decision, a field of job.yaml, a DeepSpeed setting, a variable, an item of memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from qwen_job.errors import JobError, UsageError
from qwen_job.job import Job
from qwen_job.plan.compare import flatten
from qwen_job.plan.decision import Ledger
from qwen_job.plan.estimate.activations import layer_activation_bytes
from qwen_job.plan.plan import Plan
from qwen_job.plan.precision import decide_attention, decide_fused_loss, decide_precision
from qwen_job.plan.search.choice import Choice, choose, layout_of
from qwen_job.text import GIB, nearest

# What each item of memory is made of; the formulas with their sources stand in qwen_job/plan/estimate/memory.py.
ITEMS = {
    "weights": "bytes of the precision a parameter; ZeRO-3 shares them out over all GPUs",
    "gradients": "bytes of the precision a parameter; shared out from ZeRO-2 on, on the host with offload",
    "master weights": "4 bytes a parameter, the fp32 copy that is updated; shared out from ZeRO-1 on",
    "optimizer": "8 bytes a parameter, Adam's two moments in fp32; shared out from ZeRO-1 on",
    "optimizer's temporaries": "copies of this GPU's gradients, one of them in fp32, while the optimizer steps",
    "reduce buckets": "gradients on their way: zero_optimization.reduce_bucket_size elements, twice with overlap",
    "gathered weights": "weights of other GPUs in use: at most zero_optimization.stage3_max_live_parameters",
    "offload staging": "the largest gradient, on its way to the host",
    "activations": "what the backward pass needs of every layer; with checkpointing each layer's input only",
    "one layer's backward": "one layer's activations (computed again with checkpointing) and gradients",
    "logits and loss": "vocabulary x tokens for the plain loss, a chunk of it for a fused one",
    "fragmentation": "what the allocator cannot use, a share of the allocated bytes (plan.fragmentation)",
    "CUDA context": "CUDA itself, cuBLAS and kernels (plan.context_bytes)",
    "NCCL": "buffers of the collectives (plan.nccl_bytes)",
    "processes": "each training process without its model (plan.process_bytes)",
    "checkpoint copy": "the state to save, copied so that training continues while it is written",
    "loading the weights": "every process reads its copy of the weights before they are shared out",
    "offloaded optimizer": "12 bytes a parameter: master weights and moments, this node's share",
    "offloaded gradients": "gradients in fp32 and in the precision, this node's share",
    "pinned weights": "updated weights on their way back to the GPU",
    "data and page cache": "the prepared data, 4 bytes a token and 40 a conversation, as far as it is known",
    "prepared data": "4 bytes a token and 40 a conversation, inside the run's folder or data.cache_dir",
    "checkpoints": "weights, master weights and moments: train.save_total_limit of them and one being written",
    "model": "the final weights in the precision",
}
_CHOSEN = {
    "deepspeed.zero_stage": "zero_stage",
    "deepspeed.offload_optimizer": "offload_optimizer",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.per_device_train_batch_size": "micro_batch_size",
}


# Decided by what the device can do, before the search: the field of the search's question, and the possible values.
_RULED = {
    "precision": ("precision", ("bf16", "fp16", "fp32")),
    "train.attention": ("attention", ("varlen", "sdpa", "eager")),
    "train.fused_loss": ("fused_loss", ("chunked", "torch", "liger", "none")),
}


@dataclass(frozen=True)
class Explanation:
    """A field's full name, its value, and the reasons, the first one the shortest."""

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
        return Explanation(name, value, (words,))
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
    # A field of job.yaml is what is meant, where DeepSpeed's file repeats it.
    ends = [name for name in ends if not name.startswith("deepspeed.config.")] or ends
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"--explain: {field!r} is several fields: {', '.join(ends)}; name one in full")
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
    """Return the field's own words from the types of job.yaml."""
    model: Any = Job
    field = None
    for part in name.split("."):
        field = model.model_fields.get(part) if isinstance(model, type) and issubclass(model, BaseModel) else None
        if field is None:
            return []
        model = field.annotation
    return [field.description] if field is not None and field.description else []


def _alternatives(plan: Plan, name: str) -> list[str]:
    """Return what the search would choose if the field were free, and the results of its other values."""
    attribute, best = _CHOSEN.get(name), plan.choice
    if attribute is None or plan.question is None:
        return []
    lines = []
    free = choose(replace(plan.question, **{attribute: None}))  # type: ignore[arg-type]
    if getattr(plan.question, attribute) is not None and free.best is not None:
        same = getattr(free.best, attribute) == getattr(best, attribute)
        lines.append(f"left free, the plan takes {'the same' if same else f'{free.best}{_speed(free.best)}'}")
    shown = {getattr(best, attribute)}
    for runner in free.runners_up:
        value = getattr(runner.choice, attribute)
        if value not in shown:
            shown.add(value)
            lines.append(f"{str(value).lower()}: {runner.why} ({runner.choice})")
    return lines


def _by_rule(plan: Plan, name: str) -> list[str]:
    """Return the best plan with each other value of a field that a rule decides."""
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
            room = f"{best.needs.gpu_bytes / GIB:.1f} GiB a GPU"
            lines.append(f"{value}: {room}{_speed(best) if name == 'precision' else ''} ({best})")
    return lines


def _refused(plan: Plan, name: str, value: str) -> str:
    """Return why the device cannot do what a ruled field would be; empty when it can."""
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
    words = f"{layers} layers of {kept:,.1f} MiB each for {layout.tokens:,} tokens with {layout.attention} attention"
    return [words + (f"; without checkpointing {whole:,.1f} MiB each" if layout.gradient_checkpointing else "")]


def _speed(choice: Choice) -> str:
    return f": {choice.speed.tokens_per_second:,.0f} tokens/s" if choice.speed else ""
