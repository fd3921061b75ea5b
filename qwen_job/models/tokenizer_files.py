"""The tokenizer and generation files of a ChatML model: tokenizer.json and its companions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen_job.chatml import END_OF_TEXT, IM_END, IM_START, PATTERN, chat_template


def added_token(token: str) -> dict[str, object]:
    """Return a special token as tokenizer files describe it: matched exactly, never split or trimmed."""
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def tokenizer_json(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], specials: Sequence[str]
) -> dict[str, object]:
    """Return the content of tokenizer.json: byte-level BPE after NFC, special ids from len(vocabulary)."""
    first = len(vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": first + index, **added_token(token)} for index, token in enumerate(specials)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [f"{left} {right}" for left, right in merges],  # readable by every version of tokenizers
        },
    }


def tokenizer_config(first_special_id: int, specials: Sequence[str], model_max_length: int) -> dict[str, object]:
    """Return the content of tokenizer_config.json for a Qwen2 tokenizer (transformers 4 and 5, vLLM)."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first_special_id + index): added_token(token) for index, token in enumerate(specials)
        },
        "additional_special_tokens": [IM_START, IM_END],
        "bos_token": None,
        "chat_template": chat_template(),
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "errors": "replace",
        "model_max_length": model_max_length,
        "pad_token": END_OF_TEXT,
        "split_special_tokens": False,
        "unk_token": None,
    }


def generation_config(first_special_id: int, sampling: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the content of generation_config.json; an answer ends at any special token of the layout.

    ``<|im_end|>`` comes first: that is the one that a trained model writes. ``first_special_id`` is that of
    ``<|endoftext|>``.
    """
    return {
        "bos_token_id": first_special_id,
        "eos_token_id": [first_special_id + 2, first_special_id + 1, first_special_id],
        "pad_token_id": first_special_id,
        **(sampling or {"do_sample": False}),
    }
