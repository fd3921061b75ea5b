"""The command line of QwenLM's finetune.py, read unchanged and turned into a ``TrainConfig``.

Old TrainingArguments names are translated and said once. Nothing here imports torch: the caller says which
device there is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.errors import UsageError
from qwen_job.models.chatml import SYSTEM_PROMPT
from qwen_job.train.config import DeepSpeedConfig, TrainConfig, parse_config


class Hardware(NamedTuple):
    """What this process can compute on; ``capability`` is (major, minor), or None on a CPU."""

    device: str
    capability: tuple[int, int] | None
    has_varlen: bool


# Names of transformers 4 that version 5 removed, and what they are called now.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "activation_checkpointing": "gradient_checkpointing",
    "no_cuda": "use_cpu",
    "cpu": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
# Accepted because the reference passes them; each has no effect here, for the reason given.
IGNORED = {
    "overwrite_output_dir": "nothing is ever overwritten: a run resumes or starts in an empty folder",
    "save_safetensors": "weights are always written as safetensors",
    "lazy_preprocess": "conversations are prepared once and read from memory-mapped files",
    "use_lora": "this is full fine-tuning",
    "q_lora": "this is full fine-tuning",
    "remove_unused_columns": "the prepared data has only what the model reads",
    "local_rank": "the launcher's environment says which rank this is",
    "local-rank": "the launcher's environment says which rank this is",
    "ddp_find_unused_parameters": "DeepSpeed reduces the gradients",
    "logging_dir": "events are written into the output folder",
    "do_train": "this command always trains",
    "fix_vit": "text models have no vision tower",
    "trust_remote_code": "no remote code is ever run",
    "disable_tqdm": "the progress line adapts to the terminal by itself",
    "optim": "AdamW: torch's fused one on a GPU, DeepSpeed's with offload",
}
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
    # Beyond the reference: the same names as in train.yaml.
    "packing": bool,
    "mask": str,
    "long_samples": str,
    "system_prompt": str,
    "attention": str,
    "fused_loss": str,
    "model_source": str,
    "run_name": str,
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
    "adam_beta2": 0.999,
    "lr_scheduler_type": "linear",
    "logging_steps": 500,
    "save_total_limit": None,
    "dataloader_num_workers": 0,
}


@dataclass
class Flags:
    """The command line, typed, and a sentence for every name that was translated or has no effect."""

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
            flags.notes.append(f"--{name} is called --{new} today: translated")
        if new in seen:
            raise UsageError(f"--{new} is given twice; give it once")
        seen.add(new)
        _store(flags, new, text)
    return flags


def config_from_flags(
    arguments: Sequence[str], hardware: Hardware, world_size: int
) -> tuple[TrainConfig, DeepSpeedConfig, list[str]]:
    """Translate the reference's command line; also returns what there is to say about it.

    Raises:
        UsageError: a flag is unknown or missing, or the flags contradict each other.
        JobError: a value is out of range.
    """
    flags = parse_flags(arguments)
    own = flags.own
    for required in ("model_name_or_path", "data_path", "output_dir"):
        if not own.get(required):
            raise UsageError(f"--{required} is required")
    values = {
        "name": own.get("run_name") or Path(own["output_dir"]).name or "run",
        "output_dir": str(Path(own["output_dir"]).absolute()),
        "seed": own.get("seed", 42),
        "world_size": world_size,
        **_hardware_values(own, hardware),
        "torch_compile": own.get("torch_compile", False),
        "gradient_checkpointing": own.get("gradient_checkpointing", False),
        "model": _model_values(own),
        "data": _data_values(own),
        "training": _training_values(flags),
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
    if name in ("use_lora", "q_lora") and _boolean(name, text):
        raise UsageError(f"--{name} True is not offered: qwen-job fine-tunes all weights; remove the flag")
    if name in IGNORED:
        flags.notes.append(f"--{name} has no effect here: {IGNORED[name]}")
    elif name in _OWN:
        kind: Callable[[str], Any] = _OWN[name]
        flags.own[name] = _boolean(name, text) if kind is bool else _typed(name, text, kind)
    elif name in _TRAINING:
        flags.training[name] = _typed(name, text, _TRAINING[name])
    elif name in _training_arguments():
        flags.training[name] = _loose(text)
    else:
        raise UsageError(f"no such flag: --{name}{_suggestion(name)}")


def _training_arguments() -> set[str]:
    """Names of the installed TrainingArguments; importing it takes seconds, so only when it is needed."""
    from dataclasses import fields

    from transformers import TrainingArguments

    return {item.name for item in fields(TrainingArguments)}


def _suggestion(name: str) -> str:
    near = difflib.get_close_matches(name, [*_OWN, *_TRAINING, *IGNORED, *RENAMED], n=1)
    return f"; did you mean --{near[0]}?" if near else ""


def _boolean(name: str, text: str | None) -> bool:
    if text is None or text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise UsageError(f"--{name} wants True or False, not {text!r}")


def _typed(name: str, text: str | None, kind: Callable[[str], Any]) -> Any:
    if text is None:
        raise UsageError(f"--{name} wants a value")
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"--{name} wants a number, not {text!r}") from None


def _loose(text: str | None) -> Any:
    import yaml

    return True if text is None else yaml.safe_load(text)


def _hardware_values(own: dict[str, Any], hardware: Hardware) -> dict[str, Any]:
    if own.get("bf16") and own.get("fp16"):
        raise UsageError("--bf16 and --fp16 exclude each other: choose one")
    on_gpu = hardware.device == "cuda" and not own.get("use_cpu")
    modern = on_gpu and hardware.capability is not None and hardware.capability >= (8, 0)
    if own.get("bf16") and on_gpu and not modern:
        raise UsageError("--bf16 True: this GPU has no bf16 (compute capability below 8.0); use --fp16 True")
    return {
        "device": "cuda" if on_gpu else "cpu",
        "precision": "bf16" if own.get("bf16") else "fp16" if own.get("fp16") else "fp32",
        "attention": own.get("attention") or ("varlen" if modern and hardware.has_varlen else "sdpa"),
        "fused_loss": own.get("fused_loss") or ("chunked" if on_gpu else "none"),
    }


def _model_values(own: dict[str, Any]) -> dict[str, Any]:
    name = own["model_name_or_path"]
    local = Path(name).exists() or name.startswith(("/", ".", "~"))
    source = own.get("model_source") or ("local" if local else "modelscope")
    return {
        "name": name if local else name.rstrip("/"),
        "source": source,
        "revision": "master" if source == "modelscope" else None,
        "cache_dir": own.get("cache_dir"),
    }


def _data_values(own: dict[str, Any]) -> dict[str, Any]:
    def files(text: str | None) -> list[dict[str, Any]]:
        return [{"path": str(Path(text).absolute()), "weight": 1.0}] if text else []

    return {
        "train": files(own["data_path"]),
        "eval": files(own.get("eval_data_path")),
        "eval_split": 0.0,
        "format": "auto",
        "system_prompt": own.get("system_prompt", SYSTEM_PROMPT),
        "max_length": own.get("model_max_length", 8192),
        "long_samples": own.get("long_samples", "truncate"),
        "packing": own.get("packing", False),
        "mask": own.get("mask", "assistant"),
        "cache_dir": None,
        "num_workers": None,
    }


def _training_values(flags: Flags) -> dict[str, Any]:
    values = {**_HUGGING_FACE_DEFAULTS, **flags.training}
    report = flags.own.get("report_to", "none")
    values["report_to"] = [] if report == "none" else report.replace(",", " ").split()
    if flags.own.get("save_strategy") == "no":
        values["save_steps"] = 0
    elif flags.own.get("save_strategy") == "epoch":
        values["save_strategy"] = "epoch"
    if flags.own.get("eval_strategy", "no") == "no":
        values["eval_steps"] = None
    elif flags.own["eval_strategy"] == "epoch":
        values["eval_strategy"] = "epoch"
    elif values.get("eval_steps") is None:
        values["eval_steps"] = values.get("logging_steps", 500)
    return values


def _read_deepspeed(path: str | None) -> DeepSpeedConfig:
    if path is None:
        return {"zero_optimization": {"stage": 0}}
    if path.lstrip().startswith("{"):
        text = path
    elif not Path(path).is_file():
        raise UsageError(f"--deepspeed {path}: no such file (looked from {Path.cwd()})")
    else:
        text = Path(path).read_text(encoding="utf-8")
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--deepspeed {path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"--deepspeed {path}: must be a JSON object")
    return values
