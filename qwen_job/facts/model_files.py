"""Read the files of a model folder; every refusal names the file.

- ``member``, ``listed``, ``exists``, ``read_json``: one file; links out of the folder are refused
- ``read_config``: config.json; adapters and quantized models are refused. ``read_text_config``: of the text model
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qwen_job import strict_json
from qwen_job.atomic import read_limited
from qwen_job.errors import ModelError
from qwen_job.facts.families import text_config
from qwen_job.facts.weights import QUANTIZED_KEYS, shown

ADAPTER = "adapter_config.json"
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def exists(path: Path) -> bool:
    """Tell whether ``path`` exists; False if that cannot be seen, and the caller's next step reports why."""
    try:
        return path.exists()
    except OSError:
        return False


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        ModelError: the file is missing, broken, or not an object.
    """
    try:
        # Not utf-8-sig: transformers refuses a byte order mark.
        value = strict_json.loads(read_limited(path, strict_json.MAX_BYTES).decode())
    except FileNotFoundError:
        raise ModelError(f"{path}: does not exist; is {path.parent} a model folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: is not a JSON object; copy or download it again")
    return value


def member(folder: Path, name: str, named_in: Path | None = None) -> Path:
    """Return the path of a model's file, which must be a plain name and not a link out of the folder.

    Links from a Hugging Face cache into its blobs are allowed. ``named_in``: the file that contains the name.

    Raises:
        ModelError: the name contains a folder, or the file is outside the folder.
    """
    path = folder / name
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ModelError(
            f"{named_in or folder}: {name!r} is not a plain file name; a model's files must be in its folder"
        )
    try:
        if path.is_symlink() and not _stays(path.resolve(), folder.resolve()):
            raise ModelError(f"{path}: is a link out of the model's folder; put the file itself there")
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads back to itself
        raise ModelError(f"{path}: cannot be followed ({error}); put the file itself there") from error
    return path


def listed(folder: Path, name: str) -> Path:
    """Return the path of a file that a record of the folder lists, perhaps in a folder below; see :func:`member`."""
    *above, last = name.split("/")
    for part in above:
        folder = member(folder, part)
    return member(folder, last)


def _stays(target: Path, folder: Path) -> bool:
    blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return blob or target.is_relative_to(folder)


def read_config(folder: Path) -> dict[str, object]:
    """Return a model folder's config.json.

    Raises:
        ModelError: it is missing or broken, or the folder is an adapter's or quantized.
    """
    try:
        found = folder.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{folder}: cannot be read: {reason}; check the permissions of its folder") from error
    if not found:
        raise ModelError(f"{folder}: is not a folder; model.name must be a model's folder when its source is local")
    path = member(folder, "config.json")
    if exists(member(folder, ADAPTER)):
        merged = "merge it into its base model first" if not exists(path) else f"remove {ADAPTER} if it is merged"
        raise ModelError(f"{folder}: has an adapter (LoRA, {ADAPTER}); {merged}, or use the full model")
    for other in folder.glob("shard-*-model-*-of-*.safetensors"):
        raise ModelError(f"{other}: is part of a distributed checkpoint, which would be loaded first; remove it")
    if not exists(path) and any(folder.glob("*.gguf")):
        raise ModelError(f"{folder}: has only GGUF files, which are quantized; use the full-precision model")
    config = read_json(path)
    refuse_quantized(folder, config)
    return config


def read_text_config(folder: Path) -> dict[str, object]:
    """Return the config of a model folder's text model, which is what is trained; see :func:`read_config`.

    Raises:
        ModelError: as there, and for a vision-language folder whose ``text_config`` cannot be used.
    """
    config = read_config(folder)
    try:
        text = text_config(config)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    refuse_quantized(folder, text)
    return text


def refuse_quantized(folder: Path, config: Mapping[str, object]) -> None:
    """Refuse a folder whose config or settings files say that its weights are quantized.

    Raises:
        ModelError: names the file and the key.
    """
    for key in QUANTIZED_KEYS:
        if value := config.get(key):
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            raise ModelError(quantized(folder, f"config.json: {key}{f': {shown(method)}' if method else ''}"))
    for name in QUANTIZED_FILES:
        if exists(folder / name):
            raise ModelError(quantized(folder, name))


def quantized(folder: Path, reason: str) -> str:
    """Return the message about a quantized model, which cannot be fully fine-tuned or converted back."""
    return f"{folder}: is quantized ({reason}); use the full-precision model"


def is_qwen1(config: Mapping[str, object]) -> bool:
    """Return whether a config is Qwen-1's, which only remote code can load."""
    return config.get("model_type") == "qwen" or "QWenLMHeadModel" in architectures(config)


def architectures(config: Mapping[str, object]) -> list[object]:
    """Return the class names in a config."""
    value = config.get("architectures")
    return value if isinstance(value, list) else []
