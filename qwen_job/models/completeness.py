"""Check that a model folder is complete, from file headers alone, before any process of the job starts torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from qwen_job.chatml import SPECIAL_TOKENS
from qwen_job.errors import ModelError
from qwen_job.facts.config_fields import check_fields
from qwen_job.facts.families import family_of
from qwen_job.facts.model_files import (
    architectures,
    exists,
    is_qwen1,
    member,
    quantized,
    read_config,
    read_json,
    read_text_config,
)
from qwen_job.facts.weights import LEFT_OUT, TEXT_PREFIX, expected_shapes, shown, size
from qwen_job.models.config_json import check_config
from qwen_job.models.legacy import pickled_shards
from qwen_job.models.qwen1 import is_computed
from qwen_job.models.tensors import FLOATS, INDEX, Tensor, read_folder, shards
from qwen_job.models.tokens import added_tokens, check_tokenizer

__all__ = ["check_folder", "is_qwen1", "needs_conversion", "read_config", "stop_ids"]

# Packed integers, their scales and zeros: GPTQ, AWQ, FP8, compressed-tensors, bitsandbytes.
_QUANTIZED_NAMES = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_packed", ".absmax",
    ".quant_map", ".SCB",
)  # fmt: skip
# Every other file that is read or copied from a model's folder.
_READ = ("*.json", "*.jinja", "*.tiktoken", "tokenizer*", "merges.txt", "LICENSE*", "NOTICE*")


def check_folder(folder: Path) -> dict[str, object]:
    """Check config, weights and tokenizer of a natively supported model and return the config of its text model.

    Every weight that the config calls for must exist with its shape. A vision-language folder may hold more.

    Raises:
        ModelError: the first thing that is wrong.
    """
    config = read_config(folder)
    if is_qwen1(config):
        raise ModelError(f"{folder}: is in Qwen-1's layout; 'qwen-job model convert' converts it to a native folder")
    try:
        family, named = family_of(config), architectures(config)
        config = read_text_config(folder)
        expected_shapes(config)  # refuses sizes that cannot be
        if not any(name in named for name in family.classes):
            classes = " or ".join(map(repr, family.classes))
            raise ModelError(f"config.json: architectures: must hold {classes} for a chat model")
        check_config(config)
        check_fields(config, "config.json")
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    check_links(folder)
    _check_weights(folder, config, hybrid=family.is_hybrid)
    check_tokenizer(folder, size(config, "vocab_size"))
    _check_generation(folder)
    return config


def check_links(folder: Path) -> None:
    """Refuse links to files outside the folder: what is read or copied from a model's folder is inside it."""
    for name in sorted({path.name for pattern in _READ for path in folder.glob(pattern)}):
        member(folder, name)


def _check_weights(folder: Path, config: Mapping[str, object], *, hybrid: bool) -> None:
    files = shards(folder)
    tensors = read_folder(folder)
    if not tensors:
        hint = "; 'qwen-job model convert' turns pytorch_model.bin into safetensors" if pickled_shards(folder) else ""
        raise ModelError(f"{folder}: has no *.safetensors; fetch or copy the weights{hint}")
    refuse_quantized_weights(folder, tensors)
    wanted = expected_shapes(config, tensors)
    wanted = as_stored(wanted, tensors) if hybrid else wanted
    for name, shape in wanted.items():
        if name not in tensors:
            raise ModelError(f"{folder}: {name} is in no safetensors file; fetch or copy the missing shard")
        if tensors[name].shape != shape:
            raise ModelError(f"{folder}: {name} is {tensors[name].shape} where config.json asks for {shape}")
        if tensors[name].dtype not in FLOATS:
            raise ModelError(quantized(folder, f"{name} is {tensors[name].dtype}"))
    # An extra layer would be dropped silently. A tied head may be stored as well.
    for name in tensors.keys() - wanted.keys() - {"lm_head.weight"}:
        if not is_computed(name) and not (hybrid and _part(name)):
            raise ModelError(f"{folder}: {name} belongs to another model than config.json describes; "
                             "take the config.json that came with the weights")  # fmt: skip
    if files[0].name != "model.safetensors" and not exists(folder / INDEX):
        raise ModelError(f"{folder / INDEX}: does not exist, and {len(files)} other safetensors files do; "
                         "fetch or copy it, or name a single file model.safetensors")  # fmt: skip


def as_stored(wanted: Mapping[str, tuple[int, ...]], tensors: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return ``wanted`` by the names that ``tensors`` use: a folder with a vision tower calls the layers otherwise."""
    theirs, ours = TEXT_PREFIX
    if not any(name.startswith(theirs) for name in tensors):
        return dict(wanted)
    return {name.replace(ours, theirs, 1) if name.startswith(ours) else name: wanted[name] for name in wanted}


def left_out(folder: Path, *, kept: bool = False) -> list[str]:
    """Return a sentence about each part of the folder that is not trained; ``kept``: it is in the trained model."""
    end = "stays as it was in model/" if kept else "is not in the model that training writes"
    parts: dict[str, int] = {}
    for name in read_folder(folder):
        if part := _part(name):
            parts[part] = parts.get(part, 0) + 1
    return [
        f"{folder}: the {part} ({count} weights) is not trained, and {end} (train.export)"
        for part, count in parts.items()
    ]


def _part(name: str) -> str | None:
    """Return what a weight belongs to that is not the text model, e.g. ``vision tower``."""
    return next((part for prefix, part in LEFT_OUT.items() if name.startswith(prefix)), None)


def refuse_quantized_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names show that they are quantized, whatever config.json says.

    Raises:
        ModelError: naming the tensor.
    """
    for name in tensors:
        if name.endswith(_QUANTIZED_NAMES):
            raise ModelError(quantized(folder, name))


def _check_generation(folder: Path) -> None:
    path = folder / "generation_config.json"
    if not exists(path):
        return
    ends = read_json(path).get("eos_token_id")
    if ends is not None and any(type(number) is not int for number in (ends if isinstance(ends, list) else [ends])):
        raise ModelError(f"{path}: eos_token_id: expected an id or a list of them, found {shown(ends)}")


def needs_conversion(folder: Path) -> bool:
    """Tell whether a folder is Qwen-1's, or has its weights only as pickles."""
    return is_qwen1(read_config(folder)) or (not shards(folder) and bool(pickled_shards(folder)))


def stop_ids(folder: Path) -> list[int]:
    """Return the ids that end an answer: generation_config's, plus ``<|im_end|>`` and ``<|im_start|>``."""
    path = folder / "tokenizer.json"
    ids = added_tokens(path, read_json(path))
    found = [ids[token] for token in SPECIAL_TOKENS if token in ids]
    path = folder / "generation_config.json"
    configured = read_json(path).get("eos_token_id") if exists(path) else None
    extra = configured if isinstance(configured, list) else [configured]
    return sorted({*found, *(value for value in extra if isinstance(value, int))})
