"""The tokenizer that preparing uses: the folder's own, with faster ways to the same ids where they are proven.

Two short cuts, both only for the pre-tokenizer of Qwen (structure compared, see :func:`_is_qwen`):

words      A pretoken of Qwen's pattern never reaches across a single space between two other characters, and the
           pattern never looks back: a text cut there can be encoded word by word, and words repeat, so a dictionary
           answers. Text with spaces becomes several times faster.
tiktoken   If the package is there, it encodes what has no spaces (Chinese) and the words not yet known. It is used
           only if it gives the same ids as the tokenizer on probes made of this tokenizer's own vocabulary.

Text outside of :data:`_STABLE` goes to the tokenizer itself: there, normalisation or letter classes may differ
between the Unicode versions of the libraries. Each batch is checked on a few of its texts all the same.
"""

from __future__ import annotations

import json
import logging
import random
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_job.data.chatml import ChatTokenizer
from qwen_job.models.chatml import PATTERN

_LOG = logging.getLogger(__name__)
# Assigned since long, never changed by NFC: Latin, Cyrillic, punctuation, symbols, kana, Chinese, Hangul, emoji.
_STABLE = (
    "\\x00-\u024f\u0400-\u0482\u048a-\u04ff\u200d\u2010-\u2027\u2030-\u205e\u2190-\u2328\u232b-\u23f3\u2500-\u266f"
    "\u3000-\u3029\u3030-\u303e\u3041-\u3096\u30a0-\u30ff\u4e00-\u9fa5\uac00-\ud7a3\ufe0f\uff01-\uff5e"
    "\U0001f300-\U0001f64f\U0001f680-\U0001f6c5"
)
_UNSTABLE = re.compile(f"[^{_STABLE}]")
_KNOWN_WORDS = 1 << 18
_LONGEST_KNOWN = 32
_CHECKED = 1


def load_encoder(folder: Path) -> ChatTokenizer:
    """Read ``folder/tokenizer.json``, with the short cuts that hold for it."""
    plain = ChatTokenizer.load(folder)
    content = json.loads((folder / "tokenizer.json").read_bytes())
    return FastTokenizer(plain, content) if _is_qwen(content) else plain


class FastTokenizer(ChatTokenizer):
    """Gives the ids of ``plain``, sooner."""

    def __init__(self, plain: ChatTokenizer, content: dict[str, Any]) -> None:
        super().__init__(plain.tokenizer, plain.name)
        self._other_tokens = _tokens_in_text(content)
        self._whole = self._proven_tiktoken(content)
        self._first, self._rest = _Words("", self._whole or self._slow), _Words(" ", self._whole or self._slow)
        self._trusted = True

    @property
    def uses_tiktoken(self) -> bool:
        """Tell whether tiktoken is installed and gives this tokenizer's ids."""
        return self._whole is not None

    def encode_packed(self, texts: Sequence[str]) -> list[bytes]:
        """Return the ids of many texts, see :meth:`ChatTokenizer.encode_packed`."""
        if not self._trusted:
            return super().encode_packed(texts)
        quick = [self._quick(text) for text in texts]
        late = [number for number, ids in enumerate(quick) if ids is None]
        # A few are asked of the tokenizer itself as well.
        late += range(0, len(texts), max(1, len(texts) // _CHECKED))
        for number, ids in zip(late, super().encode_packed([texts[number] for number in late]), strict=True):
            if quick[number] not in (None, ids):
                _LOG.warning("%s: the fast way differs on %r; it is not used", self.name, texts[number][:80])
                self._trusted = False
                return super().encode_packed(texts)
            quick[number] = ids
        return [ids for ids in quick if ids is not None]

    def _quick(self, text: str) -> bytes | None:
        if not text.isascii() and _UNSTABLE.search(text):
            return None
        if self._other_tokens and self._other_tokens.search(text):
            return None
        if text.count(" ") * 12 > len(text):
            head, *rest = text.split(" ")
            try:
                return b"".join([self._first[head], *map(self._rest.__getitem__, rest)])
            except _CannotCut:
                pass
        return self._whole(text) if self._whole else None

    def _slow(self, text: str) -> bytes:
        return array("i", self.encode(text)).tobytes()

    def _proven_tiktoken(self, content: dict[str, Any]) -> Callable[[str], bytes] | None:
        try:
            import tiktoken
        except ImportError:
            return None
        ranks = _ranks(content["model"]["vocab"])
        if not ranks or set(ranks.values()) != set(range(len(ranks))):
            return None
        none: set[str] = set()
        # tiktoken scans every character for an empty list of special tokens: it is given one that is never used.
        encoding = tiktoken.Encoding(
            "same", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|unused|>": len(ranks)}
        )

        def encode(text: str) -> bytes:
            return encoding.encode_to_numpy(text, allowed_special=none, disallowed_special=()).tobytes()

        probes = _probes(ranks)
        same = ChatTokenizer.encode_packed(self, probes) == [encode(probe) for probe in probes]
        return encode if same else None


class _CannotCut(Exception):
    """This word may not be cut off from its neighbours."""


class _Words(dict[str, bytes]):
    """Word -> packed ids of ``prefix + word``, as far as it may be cut off from its neighbours."""

    def __init__(self, prefix: str, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._prefix, self._encode = prefix, encode

    def __missing__(self, word: str) -> bytes:
        if not word or word[0].isspace() or word[-1].isspace():
            raise _CannotCut
        ids = self._encode(self._prefix + word)
        if len(word) <= _LONGEST_KNOWN:
            if len(self) >= _KNOWN_WORDS:
                self.clear()
            self[word] = ids
        return ids


def _is_qwen(content: dict[str, Any]) -> bool:
    """Tell whether text is normalised (NFC or not at all), cut and mapped to bytes as Qwen's tokenizers do."""
    model = content["model"]
    plain = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    normalizer = content.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in plain)
        and not model.get("byte_fallback")
        and (normalizer is None or normalizer == {"type": "NFC"})
        and _cuts(content.get("pre_tokenizer") or {}) == [PATTERN, "bytes"]
    )


def _cuts(pre_tokenizer: dict[str, Any]) -> list[str]:
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        return [cut for part in pre_tokenizer["pretokenizers"] for cut in _cuts(part)]
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return [str(pre_tokenizer["pattern"].get("Regex"))]
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"] and not pre_tokenizer["use_regex"]:
        return ["bytes"]
    return [f"unknown {kind}"]


def _tokens_in_text(content: dict[str, Any]) -> re.Pattern[str] | None:
    """Match added tokens that count as text (``<think>``): only the tokenizer itself cuts around them."""
    words = [token["content"] for token in content.get("added_tokens") or [] if not token["special"]]
    words = [word for word in words if not word.startswith("<|")]
    return re.compile("|".join(map(re.escape, words))) if words else None


def _ranks(vocab: dict[str, int]) -> dict[bytes, int]:
    """Return bytes -> id of a byte-level vocabulary (GPT-2's printable stand-ins for bytes taken back)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    back = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    try:
        return {bytes(map(back.__getitem__, token)): number for token, number in vocab.items()}
    except KeyError:
        return {}  # it holds tokens that are not bytes, such as added ones


def _probes(ranks: dict[bytes, int]) -> list[str]:
    """Return texts made of this vocabulary: pairs and triples of its tokens, and long runs of one character."""
    choose = random.Random(0)
    some = choose.sample(sorted(ranks), min(len(ranks), 6000))
    tokens = [text for text in (token.decode(errors="ignore") for token in some) if not _UNSTABLE.search(text)]
    runs = [char * length for char in " \n\tae0.=-*哈的。" for length in (2, 3, 5, 8, 13, 47)]
    return runs + ["".join(choose.choices(tokens, k=3)) for _ in range(2000)]
