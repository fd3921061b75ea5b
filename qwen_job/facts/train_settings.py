"""The settings allowed under ``train``: types, limits and requirements, and each scheduler's own settings.

The facts are in qwen_job/facts/train; job.yaml, train.yaml and the reference script's flags are all checked here.
- ``fault``: checks one name and value
- ``conflicts``: checks all settings together, for those without effect or failing at the start of training
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import yaml

from qwen_job.facts import fact
from qwen_job.strict_yaml import Loader
from qwen_job.text import did_you_mean

_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("text", (str,)),
    "dict": ("'field: value' lines", (dict,)),
}
HELD_OUT = "needs held-out rows: write data.eval or data.eval_split, such as 0.02"
_NEEDS = {
    "evaluation": HELD_OUT,
    "workers": "needs data workers: write dataloader_num_workers: 1 or more",
    "torch_compile": "needs torch_compile: true",
    "gpu": "has no effect on a CPU; remove it",
    "ampere": "needs a GPU of compute capability 8.0 or more; remove it",
    "trackio": "needs trackio in report_to",
}
# Typed settings that need a held-out loss.
_EVALUATED = ("early_stopping_patience", "load_best_model_at_end", "eval_steps")
# How settings begin that train a part of the weights, or quantized ones.
PARTIAL = ("lora", "qlora", "peft", "adapter", "load_in_", "quantization", "bnb_", "finetuning_type")
NO_LORA = "is not offered: qwen-job fine-tunes all weights; remove it"


class Circumstances(NamedTuple):
    """What settings depend on: whether held-out rows are evaluated, and the device if known."""

    evaluates: bool
    on_cpu: bool | None = None
    ampere: bool | None = None


class Complaint(NamedTuple):
    """A setting and the problem with it."""

    name: str
    message: str


@cache
def facts() -> dict[str, dict[str, Any]]:
    """Return the tables ``accepted``, ``fixed``, ``renamed`` and ``owned`` of training_arguments.yaml."""
    return _read("training_arguments.yaml")


@cache
def schedulers() -> dict[str, dict[str, Any]]:
    """Return the facts about each ``lr_scheduler_type``: ``keys``, ``needs``, ``warmup`` and ``evaluation``."""
    return _read("schedulers.yaml")


def _read(name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.load(fact("train", name).read_text("utf-8"), Loader)
    return found


def fault(name: str, value: Any, typed: Iterable[str]) -> str:
    """Return the problem with a setting that is not one of the ``typed`` names; empty if it is valid."""
    table = facts()
    if name in table["accepted"]:
        return _misfit(value, table["accepted"][name])
    if name in table["fixed"]:
        always = table["fixed"][name]
        good = value == always["value"] and isinstance(value, bool) == isinstance(always["value"], bool)
        return "" if good else f"can only be {_show(always['value'])}: {always['reason']}"
    if name in table["renamed"]:
        return f"is written {table['renamed'][name]!r} here"
    if name in table["owned"]:
        return f"is not set here: {table['owned'][name]}"
    if name.startswith(PARTIAL):
        return NO_LORA
    known = [*typed, *table["accepted"]]
    return "unknown field" + did_you_mean(name, known, "train.")


def conflicts(values: Mapping[str, Any], written: Collection[str], given: Circumstances) -> list[Complaint]:
    """Return unmet requirements of the settings on each other and on the machine.

    ``values``: every setting, including defaults; ``written``: the names that the user set.
    """
    found = [Complaint(name, text) for name in written if (text := _lacks(name, values, given))]
    if values.get("save_steps") == 0 and values.get("save_strategy", "steps") != "epoch":
        found += [
            Complaint(name, "needs checkpoints, and none are saved: write save_steps")
            for name in ("load_best_model_at_end", "early_stopping_patience")
            if values.get(name)
        ]
    return [*found, *_warmup(values, written), *_schedule(values, given)]


def _lacks(name: str, values: Mapping[str, Any], given: Circumstances) -> str:
    need = "evaluation" if name in _EVALUATED else facts()["accepted"].get(name, {}).get("needs")
    off = values.get(name) is None or values.get(name) is False
    if need is None or off:
        return ""
    met = {
        "evaluation": given.evaluates,
        "workers": bool(values.get("dataloader_num_workers", 1)),
        "torch_compile": values.get("torch_compile") is True,
        "gpu": not given.on_cpu,
        "ampere": given.ampere is not False,
        "trackio": any(tracker in (values.get("report_to") or []) for tracker in ("trackio", "all")),
    }
    return "" if met[need] else _NEEDS[need]


def _warmup(values: Mapping[str, Any], written: Collection[str]) -> list[Complaint]:
    mine = [name for name in ("warmup_ratio", "warmup_steps") if name in written and values.get(name)]
    kind = str(values.get("lr_scheduler_type"))
    if len(mine) == 2:
        return [Complaint("warmup_steps", "warmup_ratio is also set; remove one of them")]
    if mine and not schedulers().get(kind, {}).get("warmup", True):
        return [Complaint(mine[0], f"lr_scheduler_type {kind} has no warmup; remove it{_with_warmup(kind)}")]
    return []


def _with_warmup(kind: str) -> str:
    return ", or write constant_with_warmup" if kind == "constant" else ""


def _schedule(values: Mapping[str, Any], given: Circumstances) -> list[Complaint]:
    """Check ``lr_scheduler_kwargs`` as transformers would, and limits that it does not check."""
    kind, keys = str(values.get("lr_scheduler_type")), values.get("lr_scheduler_kwargs")
    if kind == "cosine" and keys is None:
        return []  # the default has no requirements, so most jobs need not read the file
    takes = schedulers().get(kind)
    if takes is None:
        return [Complaint("lr_scheduler_type", f"{kind!r} is not a scheduler{did_you_mean(kind, schedulers())}")]
    if keys is not None and not isinstance(keys, dict):
        return []  # its type is checked elsewhere
    keys = keys or {}
    known: dict[str, Any] = takes.get("keys", {})
    found = [
        Complaint(f"lr_scheduler_kwargs.{key}", text)
        for key, value in keys.items()
        if (text := _misfit(value, known[key]) if key in known else _foreign(kind, known))
    ]
    if takes.get("evaluation") and not given.evaluates:
        found.append(Complaint("lr_scheduler_type", f"{kind} {HELD_OUT}"))
    needs: dict[str, Any] = takes.get("needs", {})
    present = [key for key in needs if keys.get(key) is not None]
    if needs and not present:
        example = " or ".join(f"{key}: {value}" for key, value in needs.items())
        name = "lr_scheduler_kwargs" if values.get("lr_scheduler_kwargs") is not None else "lr_scheduler_type"
        found.append(Complaint(name, f"{kind} needs one more number: write lr_scheduler_kwargs with {example}"))
    if len(present) > 1:
        found.append(
            Complaint("lr_scheduler_kwargs", f"{' and '.join(present)} cannot be combined; remove one of them")
        )
    return found or _limits(kind, keys, float(values.get("learning_rate", 1e-5)))


def _foreign(kind: str, known: Mapping[str, Any]) -> str:
    hint = f"it has {', '.join(known)}" if known else "it has none"
    return f"is not a setting of {kind}; {hint}"


def _limits(kind: str, keys: Mapping[str, Any], rate: float) -> list[Complaint]:
    """Refuse a final rate above the learning rate: the schedule would rise, or transformers would refuse it."""
    lowest = {"polynomial": keys.get("lr_end", 1e-7)}.get(kind, keys.get("min_lr"))
    name = "lr_end" if kind == "polynomial" else "min_lr"
    if lowest is not None and lowest >= rate:
        return [Complaint(f"lr_scheduler_kwargs.{name}", f"{lowest:g} must be below learning_rate, {rate:g}")]
    highest = keys.get("max_lr")
    if highest is not None and highest < rate:
        return [Complaint("lr_scheduler_kwargs.max_lr", f"{highest:g} must not be below learning_rate, {rate:g}")]
    return []


def _misfit(value: Any, fact: Mapping[str, Any]) -> str:
    """Return why ``value`` does not match a fact's type, choices and limits."""
    if "choices" in fact:
        choices = fact["choices"]
        if value in choices:
            return ""
        return f"{_show(value)} is not one of {', '.join(choices)}{did_you_mean(value, choices)}"
    noun, kinds = _KINDS[fact["kind"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and fact["kind"] != "bool"):
        return f"expected {noun}, not {_show(value)}"
    if fact["kind"] not in ("int", "float"):
        return ""
    for word, good in (
        ("least", value >= fact.get("least", value)),
        ("most", value <= fact.get("most", value)),
        ("over", "over" not in fact or value > fact["over"]),
        ("below", "below" not in fact or value < fact["below"]),
    ):
        if not good:
            return f"must be {_LIMITS[word]} {fact[word]}, not {_show(value)}"
    return ""


_LIMITS = {"least": "at least", "most": "at most", "over": "more than", "below": "less than"}


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
