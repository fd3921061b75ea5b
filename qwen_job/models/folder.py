"""Is this model folder complete? Told from headers alone, before any process of the job starts torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qwen_job.errors import ModelError

from .chatml import SPECIAL_TOKENS
from .files import read_json
from .shapes import NATIVE, expected_shapes
from .tensors import read_folder, shards

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def read_config(folder: Path) -> dict[str, object]:
    """Return a model folder's config.json; ModelError says what is wrong with the folder."""
    try:
        found = folder.is_dir()
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}; check the rights of its folder") from error
    if not found:
        raise ModelError(f"{folder}: is no folder; model.name must be a model's folder when its source is local")
    return read_json(folder / "config.json")


def is_qwen1(config: Mapping[str, object]) -> bool:
    """Tell whether a config is of the first generation, which only remote code could load."""
    return config.get("model_type") == "qwen" or "QWenLMHeadModel" in _architectures(config)


def _architectures(config: Mapping[str, object]) -> list[object]:
    value = config.get("architectures")
    return value if isinstance(value, list) else []


def check_folder(folder: Path) -> dict[str, object]:
    """Check config, weights and tokenizer of a natively supported model and return its config.

    Every weight that the config calls for must be there in its shape. ModelError names the first thing wrong.
    """
    config = read_config(folder)
    if is_qwen1(config):
        raise ModelError(f"{folder}: is in Qwen-1's layout; 'qwen-job model convert' makes a native folder of it")
    kind = config.get("model_type")
    wanted = expected_shapes(config)
    if NATIVE[str(kind)] not in _architectures(config):
        raise ModelError(f"{folder}: config.json: architectures: must hold {NATIVE[str(kind)]!r} for a chat model")
    tensors = read_folder(folder)
    if not tensors:
        hint = "; 'qwen-job model convert' turns pytorch_model.bin into safetensors" if _has_pickles(folder) else ""
        raise ModelError(f"{folder}: holds no *.safetensors; fetch or copy the weights{hint}")
    for name, shape in wanted.items():
        if name not in tensors:
            raise ModelError(f"{folder}: {name} is in no safetensors file; fetch or copy the missing shard")
        if tensors[name].shape != shape:
            raise ModelError(f"{folder}: {name} is {tensors[name].shape} where config.json asks for {shape}")
    for file in TOKENIZER_FILES:
        read_json(folder / file)
    return config


def needs_conversion(folder: Path) -> bool:
    """Tell whether a folder is of the first generation, or holds its weights as pickles only."""
    return is_qwen1(read_config(folder)) or (not shards(folder) and _has_pickles(folder))


def _has_pickles(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin"))


def stop_ids(folder: Path) -> list[int]:
    """Return the ids that end an answer: generation_config's, plus ``<|im_end|>`` and ``<|im_start|>``."""
    added = read_json(folder / "tokenizer.json").get("added_tokens")
    ids = {
        str(token.get("content")): int(token["id"])
        for token in (added if isinstance(added, list) else [])
        if "id" in token
    }
    found = [ids[token] for token in SPECIAL_TOKENS if token in ids]
    path = folder / "generation_config.json"
    configured = read_json(path).get("eos_token_id") if path.exists() else None
    extra = configured if isinstance(configured, list) else [configured]
    return sorted({*found, *(value for value in extra if isinstance(value, int))})
