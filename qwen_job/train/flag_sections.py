"""Sections of train.yaml from the flags of QwenLM's finetune.py: device, model and data. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.errors import UsageError
from qwen_job.facts.data_names import is_name
from qwen_job.facts.model_names import clean_name, resolve_source


class Hardware(NamedTuple):
    """What this process can compute on; ``capability`` is (major, minor), or None on a CPU."""

    device: str
    capability: tuple[int, int] | None
    has_varlen: bool


def hardware_values(own: dict[str, Any], hardware: Hardware) -> dict[str, object]:
    """Return device, precision, attention and loss.

    Raises:
        UsageError: the device does not support the precision.
    """
    if own.get("bf16") and own.get("fp16"):
        raise UsageError("--bf16 and --fp16 exclude each other: choose one")
    on_gpu = hardware.device == "cuda" and not own.get("use_cpu")
    modern = on_gpu and hardware.capability is not None and hardware.capability >= (8, 0)
    varlen = on_gpu and hardware.has_varlen and bool(own.get("bf16") or own.get("fp16"))
    if own.get("fp16") and not on_gpu:
        raise UsageError("--fp16 True: DeepSpeed has fp16 on GPUs only; on a CPU leave it out, or use --bf16 True")
    if own.get("bf16") and on_gpu and not modern:
        raise UsageError("--bf16 True: this GPU has no bf16 (compute capability below 8.0); use --fp16 True")
    return {
        "device": "cuda" if on_gpu else "cpu",
        "precision": "bf16" if own.get("bf16") else "fp16" if own.get("fp16") else "fp32",
        "attention": own.get("attention") or ("varlen" if varlen else "sdpa"),
        "fused_loss": own.get("fused_loss") or ("chunked" if on_gpu else "none"),
    }


def model_values(own: dict[str, Any]) -> dict[str, object]:
    """Return the ``model`` section.

    Raises:
        UsageError: the name is not a hub ID.
    """
    name = own["model_name_or_path"]
    # As transformers, the reference takes a folder of this name where there is one.
    here = Path(name).exists() or name.startswith(".")
    source = own.get("model_source") or ("local" if here else resolve_source(name, "auto"))
    try:
        name = clean_name(name, source)
    except ValueError as error:
        raise UsageError(f"--model_name_or_path: {error}") from None
    return {
        "name": name,
        "source": source,
        "revision": "master" if source == "modelscope" else None,
        "cache_dir": own.get("cache_dir"),
    }


def data_values(own: dict[str, Any]) -> dict[str, object]:
    """Return the ``data`` section."""

    def files(text: str | None) -> list[dict[str, object]]:
        if text and is_name(text):
            return [{"source": text, "weight": 1.0}]
        return [{"path": str(Path(text).absolute()), "weight": 1.0}] if text else []

    return {
        "train": files(own["data_path"]),
        "eval": files(own.get("eval_data_path")),
        "eval_split": 0.0,
        "format": "auto",
        "system_prompt": own.get("system_prompt"),
        "max_length": own.get("model_max_length", 8192),
        "long_samples": own.get("long_samples", "truncate"),
        "packing": own.get("packing", False),
        "mask": own.get("mask", "assistant"),
        "turn_order": own.get("turn_order", "strict"),
        "ignore_keys": own.get("ignore_keys", "").replace(",", " ").split(),
        "cache_dir": None,
        "num_workers": None,
    }
