"""What a tokenizer.json says about splitting text, its control tokens and its vocabulary."""

from __future__ import annotations

import codecs
import hashlib
import json
import random
import re
from binascii import b2a_base64
from collections.abc import Callable, Collection, Iterable
from itertools import accumulate, chain
from typing import Any

from qwen_job.chatml import PATTERN

# Qwen3.5's and later: combining marks belong to the letters beside them (tokenization_qwen3_5.py of transformers 5.23).
_PATTERN_3_5 = PATTERN.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")


def is_qwen(content: dict[str, Any]) -> bool:
    """Tell whether text is normalised (NFC or not at all), split and mapped to bytes as in Qwen's tokenizers."""
    model = content["model"]
    plain = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    normalizer = content.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in plain)
        and not model.get("byte_fallback")
        and (normalizer is None or normalizer == {"type": "NFC"})
        and _cuts(content.get("pre_tokenizer") or {}) in ([PATTERN, "bytes"], [_PATTERN_3_5, "bytes"])
    )


# ChatML's frame and the marks of Qwen's tokenizers for regions and media. Tokens of users may look similar.
_CONTROL = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|fim_(?:prefix|middle|suffix|pad)|repo_name|file_sep"
    r"|(?:object_ref|box|quad|vision)_(?:start|end)|(?:vision|image|video|audio|tts)_pad"
    r"|(?:audio|vision|tts_text)_(?:bos|eos|start|end)|IMAGE|VIDEO|AUDIO)\|>"
)


def is_control(token: str) -> bool:
    """Tell whether text must never become this token: one of Qwen's, not one that a user added."""
    return re.fullmatch(_CONTROL, token) is not None


def added_tokens(content: str) -> list[str]:
    """Return the added tokens of a tokenizer.json.

    Raises:
        ValueError: it is not JSON.
    """
    found = _ADDED.search(content)
    tokens = json.JSONDecoder().raw_decode(content, found.end() - 1)[0] if found else []
    return [str(token["content"]) for token in tokens]


def mark_control_tokens(content: str, words: Collection[str] = ()) -> str:
    """Return a tokenizer.json in which Qwen's control tokens and ``words`` are special and no other token is.

    Raises:
        ValueError: it is not JSON.
    """
    # Only the list is parsed: reading and writing all of a large file would take a second.
    found = _ADDED.search(content)
    if found is None:
        return content
    tokens, end = json.JSONDecoder().raw_decode(content, found.end() - 1)
    for token in tokens:
        token["special"] = is_control(token["content"]) or token["content"] in words
    return content[: found.end() - 1] + json.dumps(tokens) + content[end:]


_ADDED = re.compile(r'"added_tokens"\s*:\s*\[')


def token_finder(tokens: Collection[str]) -> Callable[[Iterable[str]], set[str]]:
    """Return a function from texts to those of ``tokens`` that occur in them."""
    if not tokens:
        return lambda _texts: set()
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    starts = {token[0] for token in tokens}

    def find(texts: Iterable[str]) -> set[str]:
        return {found for text in texts if any(start in text for start in starts) for found in pattern.findall(text)}

    return find


def bytes_of(vocab: dict[str, int]) -> dict[bytes, int]:
    """Return bytes -> ID of a byte-level vocabulary, undoing GPT-2's printable stand-ins for bytes."""
    try:
        joined = codecs.charmap_encode("".join(vocab), "strict", _STAND_INS)[0]
    except UnicodeEncodeError:
        return {}  # some tokens are not bytes, such as added ones
    ends = list(accumulate(map(len, vocab)))
    tokens = map(joined.__getitem__, map(slice, [0, *ends], ends))
    return dict(zip(tokens, vocab.values(), strict=True))


def _stand_ins() -> str:
    """Return GPT-2's character for each byte: itself where it is printable, else one of those from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256))


_STAND_INS = codecs.charmap_build(_stand_ins())


def merged_by_rank(content: dict[str, Any]) -> bool:
    """Tell whether a tokenizer is that of Qwen-1 to Qwen3, whose merges follow from its IDs, as in a .tiktoken file.

    Others may be of this kind, too; of this one it is known.
    """
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    if _cuts(content["pre_tokenizer"]) != [PATTERN, "bytes"] or list(vocab.values()) != list(range(len(vocab))):
        return False
    lines = merges if merges and isinstance(merges[0], str) else [" ".join(pair) for pair in merges]
    return hashlib.sha256("\n".join(chain(vocab, lines)).encode()).hexdigest() == _QWEN_SHA256


# Of the vocabulary and the merges that qwen.tiktoken makes.
_QWEN_SHA256 = "6a7a8a11eb4f569e38571aa3663491e1ca4388228371affb992840fa035090da"


def ranks_file(vocabulary: dict[bytes, int]) -> bytes:
    """Return a vocabulary as a .tiktoken file has it: for each token a line of base64 and ID."""
    return b"".join([b2a_base64(token, newline=False) + b" %d\n" % number for token, number in vocabulary.items()])


def probes(vocabulary: dict[bytes, int], usable: Callable[[str], bool]) -> list[str]:
    """Return texts made from this vocabulary: triples of its ``usable`` tokens, and runs of one character."""
    choose = random.Random(0)
    some = choose.sample(list(vocabulary), min(len(vocabulary), 6000))
    tokens = [text for text in (token.decode(errors="ignore") for token in some) if usable(text)]
    runs = [char * length for char in " \n\tae0.=-*哈的。" for length in (2, 3, 5, 8, 13, 47)]
    return runs + ["".join(choose.choices(tokens, k=3)) for _ in range(2000)]


def _cuts(pre_tokenizer: dict[str, Any]) -> list[str]:
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return [cut for part in pre_tokenizer["pretokenizers"] for cut in _cuts(part)]
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return [str(pre_tokenizer["pattern"].get("Regex"))]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"] and not pre_tokenizer["use_regex"]:
        return ["bytes"]
    return [f"unknown {kind}"]
