"""Convert model folders: Qwen-1 to Qwen2ForCausalLM and back, pytorch_model.bin to safetensors."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from qwen_job.chat.template import MORE_TEMPLATES
from qwen_job.errors import ModelError, UsageError
from qwen_job.facts.model_files import exists, is_qwen1, member, read_config, read_json
from qwen_job.facts.weights import expected_shapes, shown, size
from qwen_job.models.completeness import check_folder, check_links, refuse_quantized_weights
from qwen_job.models.config_json import check_config
from qwen_job.models.legacy import pickled_shards, unpickle
from qwen_job.models.qwen1 import (
    assert_shapes,
    dtype_name,
    is_computed,
    qwen1_config,
    qwen2_config,
    stack,
    to_qwen1,
    to_qwen2,
    write_shards,
)
from qwen_job.models.tensors import NewTensor, Tensor, read_folder, read_header, shards
from qwen_job.models.tokenizer import (
    FILE,
    SPECIALS,
    check_tiktoken,
    read_ranks,
    sampling_of,
    write_fast_tokenizer,
    write_generation_config,
    write_tiktoken,
)
from qwen_job.storage import Notify, exclusive, new_folder, write_json

_SMALL_FILES = ("LICENSE*", "NOTICE*")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def conversion_key(folder: Path) -> str:
    """Return a hash that changes when the folder's config or weight files change; reads no weights."""
    digest = hashlib.sha256(b"1")
    weights = shards(folder) or pickled_shards(folder)
    own = [folder / FILE] if is_qwen1(read_config(folder)) else []
    for path in [folder / "config.json", *weights, *own]:
        try:
            stat = path.stat()
        except OSError:
            raise ModelError(
                f"{path}: does not exist; the model folder is incomplete: fetch or copy it again"
            ) from None
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def convert(folder: Path, aside: Path, progress: Notify | None = None) -> None:
    """Write a model that transformers loads natively into the empty folder ``aside``; the weights are bit-identical.

    Reads shard after shard, a few MiB at a time, so memory does not grow with the model.
    """
    config = read_config(folder)
    check_links(folder)
    new_config = qwen2_config(config) if is_qwen1(config) else config
    wanted = expected_shapes(new_config)
    check_config(new_config)
    with tempfile.TemporaryDirectory(dir=aside, prefix=".bin-") as scratch:
        source = _source(folder, Path(scratch), progress)
        refuse_quantized_weights(folder, source)
        tensors = {name: tensor for name, tensor in source.items() if not is_computed(name)}
        dtype = dtype_name(tensors)
        groups: dict[str, list[NewTensor]] = {}
        for tensor in tensors.values():
            renamed = to_qwen2(tensor) if is_qwen1(config) else [(tensor.name, tensor)]
            for name, part in renamed:
                groups.setdefault(tensor.path.name, []).append(stack(name, [part]))
        found = {tensor.name: tensor.shape for group in groups.values() for tensor in group}
        if config.get("tie_word_embeddings"):
            wanted |= {name: shape for name, shape in found.items() if name == _HEAD}
        assert_shapes(wanted, found, folder)
        if config.get("tie_word_embeddings") and _HEAD in found and not _same(tensors[_HEAD], tensors[_EMBEDDING]):
            new_config = {**new_config, "tie_word_embeddings": False}
            _say(
                progress,
                "config.json: tie_word_embeddings: is set to false, because the weights include a separate head",
            )
        write_shards(groups, aside, progress)
    write_json(aside / "config.json", {**new_config, "torch_dtype": dtype})
    if is_qwen1(config):
        _convert_tokenizer(folder, aside, config, progress)
        _copy(folder, aside, _SMALL_FILES)
    else:
        _copy(
            folder,
            aside,
            (*_SMALL_FILES, "tokenizer*", "vocab.json", "merges.txt", "generation_config.json", "*.jinja"),
        )
        _copy(folder / MORE_TEMPLATES, aside / MORE_TEMPLATES, ("*.jinja",))


def _source(folder: Path, scratch: Path, progress: Notify | None) -> dict[str, Tensor]:
    if shards(folder):
        return read_folder(folder)
    pickles = pickled_shards(folder)
    if not pickles:
        raise ModelError(f"{folder}: has neither *.safetensors nor pytorch_model*.bin; fetch or copy the weights")
    _say(progress, f"reading {len(pickles)} .bin files (weights only)")
    return {name: tensor for path in unpickle(pickles, scratch) for name, tensor in read_header(path).items()}


def _same(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(left == right for left, right in zip(one.read(), other.read(), strict=True))


def _say(progress: Notify | None, line: str) -> None:
    if progress:
        progress(line)


def _convert_tokenizer(folder: Path, aside: Path, config: Mapping[str, object], progress: Notify | None) -> None:
    check_tiktoken(folder / FILE)
    ranks = read_ranks(folder / FILE)
    if size(config, "vocab_size") < len(ranks) + len(SPECIALS):
        raise ModelError(f"{folder}: config.json: vocab_size: {config['vocab_size']} is less than {FILE} needs")
    write_fast_tokenizer(ranks, aside, size(config, "seq_length", 8192))
    path = folder / "generation_config.json"
    settings = read_json(path) if path.exists() else {}
    write_generation_config(ranks, aside, settings)
    if (limit := settings.get("max_new_tokens")) is not None:
        reason = "servers would apply it as a limit to all requests"
        _say(progress, f"generation_config.json: max_new_tokens: {shown(limit)} is left out, because {reason}")


def _copy(folder: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    names = sorted({path.name for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    for name in names:
        target.mkdir(exist_ok=True)
        shutil.copyfile(member(folder, name), target / name)
    return names


def convert_folder(folder: Path, target: Path, progress: Notify | None = None) -> None:
    """Convert ``folder`` into the new folder ``target``, which must not exist yet."""
    with _new(target, progress) as aside:
        convert(folder, aside, progress)
        check_folder(aside)


def export_qwen1(folder: Path, target: Path, original: Path | None = None, progress: Notify | None = None) -> bool:
    """Write a Qwen2ForCausalLM folder in Qwen-1's layout, so that the original ``model.chat`` loads it.

    The remote code (*.py), its tokenizer and generation settings come from ``original``, a Qwen-1 folder. Without it,
    config, weights and qwen.tiktoken are complete, and the result is False: the code still has to be copied.
    """
    config = check_folder(folder)
    tensors = {name: tensor for name, tensor in read_folder(folder).items() if name in expected_shapes(config)}
    written = qwen1_config(config)
    if original:
        written = _same_model(read_config(original), written, original)
    groups: dict[str, list[NewTensor]] = {}
    for name, parts in to_qwen1(tensors):
        groups.setdefault(parts[0].path.name, []).append(stack(name, parts))
    with _new(target, progress) as aside:
        write_shards(groups, aside, progress)
        write_json(aside / "config.json", {**written, "torch_dtype": dtype_name(tensors)})
        write_tiktoken(folder, aside / FILE)
        _write_tokenizer_settings(aside, size(config, "max_position_embeddings"), sampling_of(folder))
        copied = (
            _copy(original, aside, (*_SMALL_FILES, "*.py", "tokenizer_config.json", "generation_config.json"))
            if original
            else []
        )
    return any(name.endswith(".py") for name in copied)


def _same_model(original: dict[str, object], written: Mapping[str, object], folder: Path) -> dict[str, object]:
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if original.get(key) != written[key]:
            raise ModelError(f"{folder}: {key}: is {original.get(key)}, the model to export has {written[key]}")
    return original


def _write_tokenizer_settings(folder: Path, length: int, sampling: Mapping[str, object]) -> None:
    tokenizer = {
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        "model_max_length": length,
        "tokenizer_class": "QWenTokenizer",
    }
    write_json(folder / "tokenizer_config.json", tokenizer)
    generation = {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": 151643,
        "max_new_tokens": 512,
        "max_window_size": max(length - 2048, length // 2),
        "pad_token_id": 151643,
        "top_k": 0,
        "top_p": 0.8,
        **sampling,
    }
    write_json(folder / "generation_config.json", generation)


@contextmanager
def _new(target: Path, progress: Notify | None) -> Iterator[Path]:
    if exists(target):
        raise UsageError(f"{target}: exists; name a new folder (nothing is overwritten)")
    with exclusive(target.with_name(f".{target.name}.lock"), progress, remove=True), new_folder(target) as aside:
        yield aside
