"""The generation_config.json of a trained model: its source's settings, and the stop tokens of both.

- ``stops_of``: the IDs that end an answer: ours and the source's
- ``exported``: the settings to write, and a note for each that is left out

Nothing here imports torch. Files that are not JSON raise ModelError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from qwen_job.chatml import END_OF_TEXT, IM_END, IM_START
from qwen_job.facts.families import text_config
from qwen_job.facts.model_files import read_json
from qwen_job.models.tokens import added_tokens

# vLLM applies them as limits to all requests; users of transformers set their own.
_LIMITS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time")
# Settings with a meaning in one mode only -> their neutral value; transformers refuses to save other values.
_SAMPLED: dict[str, object] = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "top_h": None, "typical_p": 1.0,
    "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
_BEAMS: dict[str, object] = {"early_stopping": False, "length_penalty": 1.0}
_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")
# They belong to a machine or a call, not to the model.
_OF_THE_CALL = (
    "assistant_ensemble_weight", "assistant_model", "cache_config", "cache_implementation", "compile_config",
    "forced_bos_token_id", "forced_eos_token_id", "logits_processor", "max_cache_len", "negative_prompt_attention_mask",
    "negative_prompt_ids", "prefix_allowed_tokens_fn", "stopping_criteria", "streamer", "suppress_tokens",
    "synced_gpus", "use_cache", "watermarking_config", "assistant_confidence_threshold", "assistant_lookbehind",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "target_lookbehind",
)  # fmt: skip
_NUMBERS = (
    "temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "length_penalty",
    "num_beams", "num_return_sequences", "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip
# Left out without a note, because they are written from the tokenizer.
_QUIET = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config")
# Old folders have these in config.json; transformers 5 refuses to save a config with them.
MISPLACED = (
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "no_repeat_ngram_size",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
    "target_lookbehind", *_LIMITS, *_SAMPLED, *_BEAMS,
)  # fmt: skip


class Exported(NamedTuple):
    """The content of generation_config.json, and notes about it."""

    values: dict[str, object]
    notes: list[str]


def stops_of(folder: Path) -> list[int]:
    """Return the IDs that end an answer, ``<|im_end|>`` first: ours and those in the folder's files."""
    return _stops(folder)[0]


def _stops(folder: Path) -> tuple[list[int], list[int]]:
    """Return the stop IDs, and the IDs that the folder names as stops but no token has."""
    ids = _added(folder)
    ours = [ids[token] for token in (IM_END, IM_START, END_OF_TEXT) if token in ids]
    config = _text(folder)
    vocabulary = config.get("vocab_size")
    limit = vocabulary if isinstance(vocabulary, int) else None
    theirs = [*_ids(_optional(folder / "generation_config.json")), *_ids(config)]
    named = _optional(folder / "tokenizer_config.json").get("eos_token")
    name = named.get("content") if isinstance(named, dict) else named
    theirs += [ids[str(name)]] if str(name) in ids else []
    usable = [number for number in theirs if number >= 0 and (limit is None or number < limit)]
    beyond = [number for number in theirs if number not in usable]
    return list(dict.fromkeys([*ours, *usable])), list(dict.fromkeys(beyond))


def pad_of(folder: Path) -> int | None:
    """Return the padding ID: that of ``<|endoftext|>``, else the folder's own."""
    ids = _added(folder)
    own = _optional(folder / "generation_config.json").get("pad_token_id")
    return ids.get(END_OF_TEXT, own if isinstance(own, int) else ids.get(IM_END))


def exported(folder: Path) -> Exported:
    """Return the generation settings of a model trained from ``folder``, with a note for each that is left out."""
    config = _text(folder)
    moved = {key: config[key] for key in MISPLACED if config.get(key) is not None}
    written = {**moved, **_optional(folder / "generation_config.json")}
    kept = {key: value for key, value in written.items() if key not in _QUIET and value is not None}
    notes = []
    for key, reason in list(_left_out(kept)):
        notes.append(f"generation_config.json: {key}: {kept.pop(key)!r} is left out of model/: {reason}")
    bos = written.get("bos_token_id")
    ids: dict[str, object] = {"bos_token_id": bos} if isinstance(bos, int) else {}
    (stops, beyond), pad = _stops(folder), pad_of(folder)
    notes += [f"eos_token_id: {number} is left out of model/: vocab_size has no such token" for number in beyond]
    ids |= {"eos_token_id": stops} if stops else {}
    ids |= {"pad_token_id": pad} if pad is not None else {}
    return Exported({**ids, **(kept or {"do_sample": False})}, notes)


def _left_out(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield each setting that is not written, once, with the reason."""
    samples = settings.get("do_sample") is True
    beams = settings.get("num_beams")
    many = isinstance(beams, int) and beams > 1
    for key, value in settings.items():
        if key in _LIMITS:
            yield key, "servers would apply it as a limit to all requests"
        elif key in _OF_THE_CALL:
            yield key, "it belongs to a call, not to the model"
        elif key in _NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            yield key, "it is not a number"
        elif key in _SAMPLED and not samples and value != _SAMPLED[key]:
            yield key, "it has no effect without do_sample: true"
        elif key in _BEAMS and (not many or value not in (True, False, "never")) and value != _BEAMS[key]:
            if key == "early_stopping" or not many:
                yield key, "it has no effect without num_beams above 1"
        elif key in _OUTPUTS and value is True and settings.get("return_dict_in_generate") is not True:
            yield key, "it has no effect without return_dict_in_generate: true"
        elif key == "num_return_sequences" and isinstance(value, (int, float)) and not _several(value, beams, samples):
            yield key, "it needs do_sample: true or as many beams"


def _several(count: float, beams: object, samples: bool) -> bool:
    """Tell whether transformers gives ``count`` answers: greedy search has one, beams have their number."""
    if count <= 1:
        return True
    return count <= beams if isinstance(beams, int) and beams > 1 else samples


def _added(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    return added_tokens(path, read_json(path))


def _ids(settings: Mapping[str, object]) -> list[int]:
    value = settings.get("eos_token_id")
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]


def _text(folder: Path) -> dict[str, object]:
    return text_config(_optional(folder / "config.json"))


def _optional(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}
