"""The model folder at the end of a run: safetensors, tokenizer, generation settings; proved by loading it.

- ``export``: write it aside, check it, move it into place (a collective of all ranks)
- ``probe``: the trainer's own logits, to compare with
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qwen_job.errors import ModelError
from qwen_job.files import sync_file, sync_folder, write_atomically
from qwen_job.models.chatml import END_OF_TEXT, IM_END, IM_START, SPECIAL_TOKENS, SYSTEM_PROMPT, chat_template
from qwen_job.train.kernels import stock_kernels
from qwen_job.train.loading import load_native

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


def export(trainer: Any, source: Path, target: Path) -> None:
    """Write the trained model to ``target``; ``source`` is the folder that training started from.

    Raises:
        ModelError: the written folder does not load, or answers differently from the trainer's model.
    """
    trainer.model_wrapped.eval()
    tokens = torch.arange(_PROBE_TOKENS, device=trainer.args.device).unsqueeze(0) + 100
    expected = probe(trainer.model_wrapped, tokens)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.process_index != 0:
        return
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    prompt = trainer.parts.config.data.get("system_prompt")
    _write(trainer.model, state, source, aside, SYSTEM_PROMPT if prompt is None else str(prompt))
    verify(aside, tokens.cpu(), expected.float().cpu())
    _replace(aside, target)


def probe(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits [1, T, V] of ``tokens`` [1, T]."""
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits  # type: ignore[no-any-return]


def verify(folder: Path, tokens: torch.Tensor, expected: torch.Tensor) -> None:
    """Load ``folder`` as any user would, without remote code, and compare its logits with the trainer's."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    # Else transformers would partition the copy for ZeRO-3.
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    model, report = load_native(folder, "auto", "sdpa")
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise ModelError(f"{folder}: the exported weights do not match the model: {report}")
    with stock_kernels():
        logits = probe(model.eval(), tokens).float()
    difference = ((logits - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    # Written so that NaN is refused too.
    if not difference <= _TOLERANCE[model.dtype]:
        raise ModelError(f"{folder}: the exported model's logits differ from the trainer's by {difference:.2%}")


def control_tokens(folder: Path) -> dict[str, int]:
    """Return the ids of ``<|im_start|>``, ``<|im_end|>`` and ``<|endoftext|>`` that the tokenizer has."""
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    return {token["content"]: token["id"] for token in added if token["content"] in SPECIAL_TOKENS}


def _write(model: Any, state: Any, source: Path, folder: Path, system_prompt: str) -> None:
    ids = control_tokens(source)
    # <|im_start|> too: a model that begins a turn of its own has finished its answer.
    stops = [ids[token] for token in (IM_END, IM_START) if token in ids]
    model.config.use_cache = True
    if model.generation_config is not None and stops:
        model.generation_config.eos_token_id = stops
        model.generation_config.pad_token_id = ids.get(END_OF_TEXT, stops[0])
    try:
        model.save_pretrained(folder, state_dict=state)
    except SafetensorError as error:
        # Its errors of the disk are text alone: code: 28, kind: StorageFull
        code = re.search(r"code: (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None
    _name_the_old_way(folder / "config.json")
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    _frame_as_trained(folder / "tokenizer_config.json", system_prompt)


def _frame_as_trained(path: Path, system_prompt: str) -> None:
    """Let servers frame a chat as training did: Qwen2.5's own template has another system prompt, Qwen3's none."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config["chat_template"] = chat_template(system_prompt)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _name_the_old_way(path: Path) -> None:
    """Repeat in config.json what transformers 4 and servers built on it look for under its older names.

    Without ``rope_theta`` they would fall back to 10000 and answer wrongly, in silence.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
