"""The model folder at the end of a run: safetensors, tokenizer, generation settings; proved by loading it.

- ``rehearse``: everything but the weights, before the first step
- ``export``: write it aside, check it, move it into place (a collective of all ranks)
- ``probe``: the trainer's own logits, to compare with
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from qwen_job.atomic import sync_file, sync_folder, write_atomically
from qwen_job.chatml import END_OF_TEXT, IM_END, SPECIAL_TOKENS
from qwen_job.errors import ModelError
from qwen_job.facts.model_files import read_json
from qwen_job.facts.positions import own_length
from qwen_job.models.generation import exported, pad_of, stops_of
from qwen_job.models.loading import load_native
from qwen_job.models.template_files import write_template
from qwen_job.report.model_card import original_folder
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.storage import write_json
from qwen_job.train.deepspeed_engine import whole_weights
from qwen_job.train.kernels import stock_kernels
from qwen_job.train.stored_names import stored
from qwen_job.train.whole_folder import refuse_without_whole, write_whole_folder

if TYPE_CHECKING:
    from qwen_job.train.trainer import Trainer

_PROBE_TOKENS = 16
# Largest difference over largest logit: another kernel on another device rounds differently.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 3e-2}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def export(trainer: Trainer, deepspeed: DeepSpeedConfig, source: Path, target: Path) -> None:
    """Write the trained model to ``target``; ``source`` is the folder that training started from.

    Raises:
        ModelError: the written folder does not load, or answers differently from the trainer's model.
    """
    engine, model = trainer.engine, trainer.engine.module
    engine.eval()
    tokens = torch.arange(_PROBE_TOKENS, device=trainer.ranks.device).unsqueeze(0) + 100
    expected = probe(engine, tokens)
    state = whole_weights(engine, deepspeed)
    if trainer.ranks.rank != 0:
        return
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for note in _write_folder(model, state, source, aside, trainer.config):
        trainer.log.say(note)
    verify(aside, tokens.cpu(), expected.float().cpu())
    _replace(aside, target)


def _write_folder(model: Any, state: Any, source: Path, folder: Path, config: TrainConfig) -> list[str]:
    """Write the model in the form that ``train.export`` asks for; returns notes."""
    if config.export == "text":
        _write_weights(model, state, folder, prefixed=False)
        return _write_settings(model, source, folder, config)
    with tempfile.TemporaryDirectory(dir=config.output_dir, prefix=".trained-") as scratch:
        _write_weights(model, state, Path(scratch))
        data = config.data
        return write_whole_folder(source, Path(scratch), folder, data.template, data.system_prompt)


def probe(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits [1, T, V] of ``tokens`` [1, T]."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits


def verify(folder: Path, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """Load ``folder`` as any user would, without remote code, and compare its logits with the trainer's."""
    model, report = load_native(folder, "auto", "sdpa")
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ModelError(f"{folder}: the exported weights do not match the model: {report}")
    with stock_kernels():
        logits = probe(model.eval(), tokens).float()
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    # Written so that NaN fails, too.
    if not difference <= _TOLERANCE[model.dtype]:
        raise ModelError(f"{folder}: the exported model's logits differ from the trainer's by {difference:.2%}")


def control_tokens(folder: Path) -> dict[str, int]:
    """Return the ids of ``<|im_start|>``, ``<|im_end|>`` and ``<|endoftext|>`` that the tokenizer has."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    return {token["content"]: token["id"] for token in added if token["content"] in SPECIAL_TOKENS}


def rehearse(model: Any, source: Path, config: TrainConfig) -> list[str]:
    """Write everything of model/ but the weights into a scratch folder and read it as transformers does.

    Returns notes. Done before the first step, because a failure after training would cost the whole run.

    Raises:
        ModelError: ``source`` holds something that cannot be exported.
    """
    from transformers import AutoConfig, GenerationConfig

    if config.export == "original":
        refuse_without_whole(source)
        if config.model.rope_scaling is not None:
            raise ModelError("model.rope_scaling: train.export: original keeps the folder's config.json; write text")
    with tempfile.TemporaryDirectory(dir=config.output_dir, prefix=".rehearsal-") as scratch:
        folder = Path(scratch)
        try:
            _clean_config(model).save_pretrained(folder)
            notes = _write_settings(model, source, folder, config)
            AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
            settings = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
            settings.validate(strict=True)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"{source}: cannot be exported after training: {' '.join(str(error).split())}") from None
    return [*notes, *_length_note(model, config)]


def _length_note(model: Any, config: TrainConfig) -> list[str]:
    """Return a warning where rows are longer than the positions that the model was trained with."""
    most, length = own_length(model.config.to_dict()) or config.data.max_length, config.data.max_length
    if length <= most:
        return []
    older = original_folder(config.model) is not None
    note = f"data.max_length: {length} tokens are more than the {most} positions that the model was trained with"
    return [note + ("; the dynamic NTK and logn attention of Qwen-1 beyond them are not used here" if older else "")]


def _write_weights(model: Any, state: Any, folder: Path, *, prefixed: bool = True) -> None:
    """Save the weights under the names that they were read from; ``prefixed``: see :func:`stored`."""
    from transformers import GenerationConfig

    # Ours is written afterwards; theirs refuses settings that it has just read.
    model.generation_config = GenerationConfig()
    model.config = _clean_config(model)
    try:
        named = stored(model, state, prefixed=prefixed)
        model.save_pretrained(folder, state_dict=named, save_original_format=False)
    except SafetensorError as error:
        # It reports errors of the disk as text only: code: 28, kind: StorageFull
        code = re.search(r"code: (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None


def _clean_config(model: Any) -> Any:
    """Return the model's config without the settings of generation that old folders keep in it."""
    config = copy.deepcopy(model.config)
    config.use_cache = True
    for name in config._get_generation_parameters():
        delattr(config, name)
    return config


def _write_settings(model: Any, source: Path, folder: Path, config: TrainConfig) -> list[str]:
    """Write tokenizer and generation settings and complete config.json; returns notes."""
    generation = exported(source)
    write_json(folder / "generation_config.json", generation.values)
    stops, pad = stops_of(source), pad_of(source)
    values = read_json(folder / "config.json")
    _name_the_old_way(values)
    values |= {"eos_token_id": stops} if stops else {}
    values |= {"pad_token_id": pad} if pad is not None else {}
    notes = list(generation.notes)
    if values.get("tie_word_embeddings") and not _is_tied(model):
        values["tie_word_embeddings"] = False
        notes.append("config.json: tie_word_embeddings: is false in model/: the weights have a separate head")
    write_json(folder / "config.json", values)
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    notes += write_template(source, folder, config.data.template, config.data.system_prompt)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        _end_as_trained(folder / name, control_tokens(source))
    return notes


def _is_tied(model: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def _end_as_trained(path: Path, ids: dict[str, int]) -> None:
    """Make ``<|im_end|>`` the end token: base models have ``<|endoftext|>``, which does not end a turn."""
    if not path.is_file():
        return
    values = read_json(path)
    values |= {"eos_token": IM_END} if IM_END in ids else {}
    values |= {"pad_token": END_OF_TEXT} if END_OF_TEXT in ids else {}
    write_json(path, values)


def _name_the_old_way(config: dict[str, Any]) -> None:
    """Repeat in config.json what transformers 4 and servers built on it look for under its older names.

    Without ``rope_theta`` they would silently fall back to 10000 and answer wrongly.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])


def _replace(aside: Path, target: Path) -> None:
    mode = (aside / "config.json").stat().st_mode & 0o777
    for path in aside.iterdir():
        path.chmod(mode)  # safetensors lets only the owner read what it writes
        sync_file(path)
    sync_folder(aside)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_done(path: Path, values: dict[str, Any]) -> None:
    """Declare the run complete."""
    write_atomically(path, json.dumps({"version": 1, **values}, indent=1) + "\n")
