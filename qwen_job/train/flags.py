"""Reads the command line of QwenLM's finetune.py, unchanged, as a ``TrainConfig``.

Old TrainingArguments names are translated, with one note each. Every other setting is judged by the table of
qwen_job/facts/train_settings.py, as in job.yaml. Nothing here imports torch: the caller says which device there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.errors import UsageError
from qwen_job.facts import choices
from qwen_job.facts import train_settings as settings
from qwen_job.run.config import RENAMED, DeepSpeedConfig, TrainConfig, parse_config
from qwen_job.run.sections import Training
from qwen_job.text import did_you_mean, visible
from qwen_job.train.flag_sections import Hardware, data_values, hardware_values, model_values

# Accepted because the reference passes them; each has no effect here, for the reason given.
IGNORED = {
    "overwrite_output_dir": "nothing is ever overwritten: a run resumes or starts in an empty folder",
    "save_safetensors": "weights are always written as safetensors",
    "lazy_preprocess": "conversations are prepared once and read from memory-mapped files",
    "use_lora": "this is full fine-tuning",
    "q_lora": "this is full fine-tuning",
    "remove_unused_columns": "the prepared data has only what the model reads",
    "local_rank": "the launcher's environment says which rank this is",
    "ddp_find_unused_parameters": "DeepSpeed reduces the gradients",
    "logging_dir": "events are written into the output folder",
    "do_train": "this command always trains",
    "do_eval": "evaluation follows --eval_strategy",
    "fix_vit": "text models have no vision tower",
    "trust_remote_code": "no remote code is ever run",
    "disable_tqdm": "the progress line adapts to the terminal by itself",
    "optim": "AdamW: torch's fused one on a GPU, DeepSpeed's with offload",
}
# The names of AdamW; another optimizer is refused, because its updates are asked for.
_ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
_OWN = {
    "model_name_or_path": str,
    "data_path": str,
    "eval_data_path": str,
    "cache_dir": str,
    "output_dir": str,
    "model_max_length": int,
    "deepspeed": str,
    "bf16": bool,
    "fp16": bool,
    "use_cpu": bool,
    "gradient_checkpointing": bool,
    "torch_compile": bool,
    "seed": int,
    "eval_strategy": str,
    "save_strategy": str,
    "report_to": str,
    "resume_from_checkpoint": str,
    # Beyond the reference: the same names as in train.yaml.
    "packing": bool,
    "mask": str,
    "long_samples": str,
    "turn_order": str,
    "ignore_keys": str,
    "system_prompt": str,
    "attention": str,
    "fused_loss": str,
    "router_aux_loss_coef": float,
    "model_source": str,
    "run_name": str,
    "resume": str,
}
_TRAINING: dict[str, Callable[[str], Any]] = {
    "per_device_train_batch_size": int,
    "per_device_eval_batch_size": int,
    "gradient_accumulation_steps": int,
    "num_train_epochs": float,
    "max_steps": int,
    "learning_rate": float,
    "weight_decay": float,
    "adam_beta1": float,
    "adam_beta2": float,
    "adam_epsilon": float,
    "max_grad_norm": float,
    "lr_scheduler_type": str,
    "warmup_ratio": float,
    "logging_steps": int,
    "eval_steps": int,
    "save_steps": int,
    "save_total_limit": int,
    "dataloader_num_workers": int,
    "load_best_model_at_end": lambda text: _boolean("load_best_model_at_end", text),
    "early_stopping_patience": int,
}

# What the reference's flags mean when they are left out: the Trainer's own defaults.
_HUGGING_FACE_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3.0,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "logging_steps": 500,
    "save_steps": 500,
    "save_total_limit": None,
    "dataloader_num_workers": 0,
}


@dataclass
class Flags:
    """The command line, typed, and a note for every name that was translated or has no effect."""

    own: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Read ``--name value``, ``--name=value`` and a bare ``--name`` (true).

    Raises:
        UsageError: a flag is unknown (with the nearest known one), given twice or has a wrong value.
    """
    flags = Flags()
    seen: set[str] = set()
    for name, text in _pairs(arguments):
        new = RENAMED.get(name, name)
        if new != name and name != "activation_checkpointing":
            flags.notes.append(f"--{name} is now called --{new}: translated")
        if new in seen:
            raise UsageError(f"--{new} is given twice; give it once")
        seen.add(new)
        _store(flags, new, text)
    return flags


def config_from_flags(
    arguments: Sequence[str], hardware: Hardware, world_size: int
) -> tuple[TrainConfig, DeepSpeedConfig, list[str]]:
    """Translate the reference's command line; also returns notes about it.

    Raises:
        UsageError: a flag is unknown or missing, or the flags contradict each other.
        JobError: a value is out of range.
    """
    flags = parse_flags(arguments)
    own = flags.own
    for required in ("model_name_or_path", "data_path", "output_dir"):
        if not own.get(required):
            raise UsageError(f"--{required} is required")
    _answer_resume(flags)
    _choose_strategies(flags)
    on_device = hardware_values(own, hardware)
    training = _training_values(flags)
    _refuse_conflicts(flags, training, on_device["device"] == "cpu", hardware)
    values = {
        "name": own.get("run_name") or Path(own["output_dir"]).name or "run",
        "output_dir": str(Path(own["output_dir"]).absolute()),
        "seed": own.get("seed", choices.SEED),
        "resume": own.get("resume", "auto"),
        "world_size": world_size,
        **on_device,
        "torch_compile": own.get("torch_compile", "auto" if on_device["device"] == "cuda" else False),
        "gradient_checkpointing": own.get("gradient_checkpointing", False),
        "router_aux_loss_coef": own.get("router_aux_loss_coef"),
        "model": model_values(own),
        "data": data_values(own),
        "training": training,
    }
    deepspeed = _read_deepspeed(own.get("deepspeed"))
    if not own.get("packing"):
        flags.notes.append("conversations are not packed, as in the reference; --packing True is faster")
    return parse_config(values, "command line"), deepspeed, flags.notes


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    pairs: list[tuple[str, str | None]] = []
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--") or word == "--":
            raise UsageError(f"unexpected argument {word!r}; every setting is written --name value")
        name, has_value, value = word[2:].partition("=")
        if has_value:
            pairs.append((name, value))
        elif index < len(arguments) and not arguments[index].startswith("--"):
            pairs.append((name, arguments[index]))
            index += 1
        else:
            pairs.append((name, None))
    return pairs


def _store(flags: Flags, name: str, text: str | None) -> None:
    if name.startswith("lora_") or (name in ("use_lora", "q_lora") and _boolean(name, text)):
        raise UsageError(f"--{name} {settings.NO_LORA}; remove the flag (docs/training.md has what to type instead)")
    if name == "optim" and text not in _ADAMW:
        raise UsageError(f"--optim {text}: the optimizer is AdamW; remove the flag")
    if name in IGNORED:
        flags.notes.append(f"--{name} has no effect here: {IGNORED[name]}")
    elif name in _OWN:
        flags.own[name] = _own_value(name, text)
    elif name in _TRAINING:
        flags.training[name] = _typed(name, text, _TRAINING[name])
    else:
        value = _setting(name, text)
        if name in settings.facts()["accepted"]:
            flags.training[name] = value


def _own_value(name: str, text: str | None) -> Any:
    if name == "resume_from_checkpoint":
        return "true" if text is None else text
    if name == "torch_compile" and (text or "").lower() == "auto":
        return "auto"
    kind: Callable[[str], Any] = _OWN[name]
    return _boolean(name, text) if kind is bool else _typed(name, text, kind)


def _setting(name: str, text: str | None) -> Any:
    """Read a setting by its kind in the table of settings, and refuse what has no effect here."""
    table = settings.facts()
    fact = table["accepted"].get(name) or table["fixed"].get(name)
    value = _read_as(name, text, _kind(fact)) if fact else text
    problem = settings.fault(name, value, ())
    if problem.startswith("unknown field"):
        raise UsageError(f"no such flag: --{name}{_suggestion(name)}")
    if problem:
        fix = "" if problem.endswith("remove it") else "; remove the flag or correct it"
        raise UsageError(f"--{name} {problem}{fix}")
    return value


def _kind(fact: dict[str, Any]) -> str:
    return str(fact.get("kind") or ("str" if "choices" in fact else type(fact["value"]).__name__))


def _read_as(name: str, text: str | None, kind: str) -> Any:
    if kind == "bool":
        return _boolean(name, text)
    if kind != "dict":
        return _typed(name, text, {"int": int, "float": float, "str": str}[kind])
    try:
        return strict_json.loads(text or "")
    except ValueError:
        raise UsageError(
            f"--{name} wants a JSON object, such as '{{\"min_lr_rate\": 0.1}}', not {_cut(text)}"
        ) from None


def _suggestion(name: str) -> str:
    known = [*_OWN, *_TRAINING, *settings.facts()["accepted"], *RENAMED]
    return did_you_mean(name, known, "--")


def _boolean(name: str, text: str | None) -> bool:
    if text is None or text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise UsageError(f"--{name} wants True or False, not {text!r}")


def _cut(text: str | None) -> str:
    return f"'{visible(text or '', 80)}'"


def _typed(name: str, text: str | None, kind: Callable[[str], Any]) -> Any:
    if text is None:
        raise UsageError(f"--{name} wants a value")
    try:
        value = kind(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise UsageError(f"--{name} wants {noun}, not {_cut(text)}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--{name} wants a finite number, not {_cut(text)}")
    return value


def _training_values(flags: Flags) -> dict[str, object]:
    values = {**_HUGGING_FACE_DEFAULTS, **flags.training}
    report = flags.own.get("report_to", "none")
    values["report_to"] = [] if report == "none" else report.replace(",", " ").split()
    values["save_strategy"] = "epoch" if flags.own.get("save_strategy") == "epoch" else "steps"
    if flags.own.get("save_strategy") == "no":
        values["save_steps"] = 0
    evaluation = flags.own.get("eval_strategy", "no")
    values["eval_strategy"] = "epoch" if evaluation == "epoch" else "steps"
    if evaluation != "steps":
        values["eval_steps"] = None
    elif values.get("eval_steps") is None:
        values["eval_steps"] = values.get("logging_steps", 500)
    return values


_EVALUATION_ONLY = ("per_device_eval_batch_size", "eval_steps", "eval_delay")


def _choose_strategies(flags: Flags) -> None:
    """Judge --save_strategy and --eval_strategy, and drop with a note what only an evaluation would use."""
    own = flags.own
    for name in ("save_strategy", "eval_strategy"):
        if own.get(name, "no") not in ("no", "steps", "epoch"):
            hint = "; --load_best_model_at_end True keeps the best checkpoint" if own[name] == "best" else ""
            raise UsageError(f"--{name} wants no, steps or epoch, not {own[name]!r}{hint}")
    evaluation = own.get("eval_strategy", "no")
    if evaluation != "no" and not own.get("eval_data_path"):
        raise UsageError(f"--eval_strategy {evaluation} needs --eval_data_path, a file of held-out conversations")
    if evaluation == "no":
        dropped = [name for name in _EVALUATION_ONLY if flags.training.pop(name, None) is not None]
        dropped += ["eval_data_path"] if own.get("eval_data_path") else []
        flags.notes += [f"--{name} has no effect here: --eval_strategy is no" for name in dropped]


def _refuse_conflicts(flags: Flags, training: dict[str, Any], on_cpu: bool, hardware: Hardware) -> None:
    ampere = not on_cpu and hardware.capability is not None and hardware.capability >= (8, 0)
    evaluates = flags.own.get("eval_strategy", "no") != "no"
    given = settings.Circumstances(evaluates, on_cpu=on_cpu, ampere=ampere)
    values = {**Training().model_dump(), **training, "torch_compile": flags.own.get("torch_compile", False)}
    found = settings.conflicts(values, list(flags.training), given)
    held_out = "needs held-out rows: give --eval_data_path and --eval_strategy steps or epoch"
    if found:
        raise UsageError("\n".join(f"--{name}: {text.replace(settings.HELD_OUT, held_out)}" for name, text in found))


def _answer_resume(flags: Flags) -> None:
    """Accept true, as a run resumes by itself; refuse false where there are checkpoints, and any path."""
    text = flags.own.pop("resume_from_checkpoint", None)
    if text is None or text.lower() in ("none", ""):
        return
    folder = Path(flags.own["output_dir"])
    if text.lower() in ("true", "1", "yes", "on"):
        flags.notes.append("--resume_from_checkpoint: a run always resumes from the newest checkpoint in --output_dir")
    elif text.lower() not in ("false", "0", "no", "off"):
        raise UsageError(
            f"--resume_from_checkpoint {text}: a run resumes by itself from the newest complete checkpoint in "
            f"--output_dir ({folder}); remove the flag, or give the output folder that is to be resumed"
        )
    elif any(folder.glob("checkpoints/step-*")):
        raise UsageError(
            f"--resume_from_checkpoint {text}: {folder} holds checkpoints, and a run resumes from them; give another "
            "--output_dir to start over"
        )


def _read_deepspeed(path: str | None) -> DeepSpeedConfig:
    if path is None:
        return {"zero_optimization": {"stage": 0}}
    written = path.lstrip().startswith("{")
    if not written and not Path(path).is_file():
        raise UsageError(f"--deepspeed {path}: no such file (looked from {Path.cwd()})")
    try:
        values = strict_json.loads(path) if written else strict_json.load(Path(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"--deepspeed {path[:200]}: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--deepspeed {path}: must be a JSON object")
    return values
