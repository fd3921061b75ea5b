"""The tokenizer used for preparing data: the model's own, with a faster path to the same IDs if it is proven equal.

gigatoken caches the IDs of every word that it has seen, and HanCuts cuts Chinese into such words. Many texts are
encoded as one, with marks between them and at the cuts: number characters that do not occur in these texts, each of
which is a separate token, because Qwen's pattern splits off every digit. The fast path is used only for Qwen's
pre-tokenizer (its structure is compared), and only if it gives the tokenizer's IDs for probes made from its vocabulary.

Text with other than stable characters goes to the tokenizer itself. From time to time a text is encoded by both.
"""

from __future__ import annotations

import json
import logging
import resource
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen_job.data.characters import SPACE, STABLE, HanCuts, character_classes
from qwen_job.data.embedding import refuse_larger, tokenizer_size
from qwen_job.data.encode import ChatTokenizer, Flat
from qwen_job.data.vocabulary import bytes_of, is_qwen, merged_by_rank, probes, ranks_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
# Number characters that are single tokens in Qwen's vocabulary, rare ones first.
_MARKS = "¾¼³¹½²９８７６４３０５２１"
# Checking costs a hundred times as much as encoding.
_CHECK_EVERY = 16
# gigatoken never drops a word from its cache; it may grow to this size.
_KNOWN_BYTES = 128 << 20


def load_encoder(folder: Path, words: frozenset[str] = frozenset()) -> ChatTokenizer:
    """Read ``folder/tokenizer.json``, with the fast path if it gives the same IDs.

    ``words``: see :meth:`ChatTokenizer.load`.

    Raises:
        ModelError: it is not a ChatML tokenizer, or larger than the embedding of the model beside it.
    """
    plain = ChatTokenizer.load(folder, words)
    content = json.loads((folder / "tokenizer.json").read_bytes())
    plain.size = tokenizer_size(content)
    refuse_larger(folder, plain.size)
    plain.splits_at_lines = is_qwen(content)
    return (_fast(plain, content) if plain.splits_at_lines else None) or plain


def _fast(plain: ChatTokenizer, content: dict[str, Any]) -> FastTokenizer | None:
    vocabulary = bytes_of(content["model"]["vocab"])
    marks = {mark: vocabulary[mark.encode()] for mark in _MARKS if mark.encode() in vocabulary}
    try:
        import gigatoken.gigatoken_rs as gigatoken
    except ImportError:
        return None
    if len(marks) < 2:
        return None
    fast = FastTokenizer(
        plain,
        load=_loader(gigatoken, content, vocabulary),
        marks=marks,
        cuts=HanCuts(vocabulary),
        slow_words=plain.text_tokens,
    )
    return fast if fast.agrees(probes(vocabulary, is_stable)) else None


def _loader(gigatoken: Any, content: dict[str, Any], vocabulary: dict[bytes, int]) -> Callable[[], Any]:
    """Return a function that makes a new tokenizer without control tokens, which are text here, and without NFC, which
    does not change stable text.
    """
    if merged_by_rank(content):
        ranks = ranks_file(vocabulary)

        def load() -> Any:
            with tempfile.NamedTemporaryFile() as file:
                file.write(ranks)
                file.flush()
                return gigatoken.BPETokenizer.from_tiktoken(file.name, "qwen2")

        return load  # in half the time
    source = json.dumps(content | {"added_tokens": [], "normalizer": None, "post_processor": None})
    return lambda: gigatoken.load_hf_json(source)


class FastTokenizer(ChatTokenizer):
    """Gives the IDs of ``plain``, faster.

    ``load`` returns a new gigatoken tokenizer, ``marks`` maps the marks to their IDs; a text with one of
    ``slow_words`` is encoded by ``plain``.
    """

    def __init__(
        self,
        plain: ChatTokenizer,
        *,
        load: Callable[[], Any],
        marks: dict[str, int],
        cuts: HanCuts,
        slow_words: tuple[str, ...],
    ) -> None:
        super().__init__(plain.tokenizer, plain.name, plain.words)
        self.size, self.splits_at_lines = plain.size, plain.splits_at_lines
        self._load, self._marks, self._cuts = load, marks, cuts
        # By their first characters: hundreds of absent words (<|extra_0|> ...) cost no more than one.
        self._slow_words: dict[str, set[str]] = {}
        for word in slow_words:
            for spelling in (word, unicodedata.normalize("NFC", word)):
                self._slow_words.setdefault(spelling[:2], set()).add(spelling)
        self._trusted = True
        self._batches = 0
        self._reload()

    def encode_flat(self, texts: Sequence[str]) -> Flat:
        """Return the ids of many texts, see :meth:`ChatTokenizer.encode_flat`."""
        flat = self._encode(texts) if self._trusted and texts else None
        if flat is None:
            return super().encode_flat(texts)
        self._batches += 1
        if self._batches % _CHECK_EVERY == 1:
            self._keep_small()
            at = self._batches // _CHECK_EVERY % len(texts)
            start = int(flat.lengths[:at].sum())
            if flat.ids[start : start + int(flat.lengths[at])].tolist() != self.encode(texts[at]):
                _LOG.warning("%s: the fast path differs on %r and is turned off", self.name, texts[at][:80])
                self._trusted = False
                return super().encode_flat(texts)
        return flat

    def agrees(self, texts: Sequence[str]) -> bool:
        """Tell whether ``texts`` get the ids of the plain tokenizer."""
        fast, plain = self._encode(texts), super().encode_flat(texts)
        return fast is not None and np.array_equal(fast.ids, plain.ids) and np.array_equal(fast.lengths, plain.lengths)

    def _encode(self, texts: Sequence[str]) -> Flat | None:
        """Return the IDs, or None if every mark occurs in these texts."""
        narrow = np.fromiter(map(str.isascii, texts), np.bool_, len(texts))
        if narrow.all():
            return self._encode_ascii(texts)
        if not narrow.any():
            return self._encode_wide(texts)
        return _merged(narrow, self._encode_ascii(_where(texts, narrow)), self._encode_wide(_where(texts, ~narrow)))

    def _encode_ascii(self, texts: Sequence[str]) -> Flat | None:
        """Encode texts of ASCII characters, which need no look at each of them: all are stable, and none is Chinese."""
        # At the end of a text, a run of spaces is one word; before a mark, its last space is a separate word.
        slow = np.fromiter(
            (text[-1:] in _ASCII_SPACES and text[-2:-1] in _ASCII_SPACES for text in texts), np.bool_, len(texts)
        )
        mark = next(iter(self._marks))
        joined = mark.join([*texts, ""])
        slow |= self._with_slow_words(texts, joined)
        if slow.any():
            return self._mixed(texts, slow)
        return self._at_marks(self._native.encode(joined), self._marks[mark], len(texts))

    def _encode_wide(self, texts: Sequence[str]) -> Flat | None:
        joined = "".join(texts)
        marks = [mark for mark in self._marks if mark not in joined][:2]
        if len(marks) < 2:
            return None
        joined = marks[0].join([*texts, ""])
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        classes = character_classes()[codes]
        ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)) + 1) - 1
        slow = self._slow(texts, joined, classes, ends)
        if slow.any():
            return self._mixed(texts, slow)
        cuts = self._cuts.find(codes, classes)
        ids = self._native.encode(_insert(codes, cuts, ord(marks[1])) if cuts.size else joined)
        return self._at_marks(ids[ids != self._marks[marks[1]]], self._marks[marks[0]], len(texts))

    def _at_marks(self, ids: NDArray[np.uint32], mark: int, count: int) -> Flat | None:
        """Return the IDs of ``count`` texts that end with a mark each; None: there are fewer marks."""
        is_end = ids == mark
        at = np.flatnonzero(is_end)
        if at.size != count:
            return None
        return Flat(ids[~is_end].view(np.int32), np.diff(at, prepend=-1) - 1)

    def _mixed(self, texts: Sequence[str], slow: NDArray[np.bool_]) -> Flat | None:
        late, others = super().encode_flat(_where(texts, slow)), _where(texts, ~slow)
        return _merged(slow, late, self._encode(others) if others else _NOTHING)

    def _slow(
        self, texts: Sequence[str], joined: str, classes: NDArray[np.uint8], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Tell for each text whether only the tokenizer itself may encode it."""
        # At the end of a text, a run of spaces is one word; before a mark, its last space is a separate word.
        slow: NDArray[np.bool_] = (classes[ends - 1] & classes[np.maximum(ends, 2) - 2] & SPACE) != 0
        slow[np.searchsorted(ends, np.flatnonzero((classes & STABLE) == 0))] = True
        return slow | self._with_slow_words(texts, joined)

    def _with_slow_words(self, texts: Sequence[str], joined: str) -> NDArray[np.bool_]:
        slow = np.zeros(len(texts), np.bool_)
        for word in (word for start, words in self._slow_words.items() if start in joined for word in words):
            if word in joined:
                slow |= np.fromiter((word in text for text in texts), np.bool_, len(texts))
        return slow

    def _keep_small(self) -> None:
        if _resident_bytes() > self._resident + _KNOWN_BYTES:
            self._reload()

    def _reload(self) -> None:
        self._native: Any = None  # free the old one first
        self._native = self._load()
        self._resident = _resident_bytes()


_NOTHING = Flat(np.empty(0, np.int32), np.empty(0, np.int64))
# White space other than line ends, as in the table of characters.
_ASCII_SPACES = frozenset("\t\v\f\x1c\x1d\x1e\x1f ")


def _where(texts: Sequence[str], wanted: NDArray[np.bool_]) -> list[str]:
    return list(compress(texts, wanted.tolist()))


def _merged(first: NDArray[np.bool_], ones: Flat | None, others: Flat | None) -> Flat | None:
    """Return the IDs of all texts in their order: ``ones`` where ``first`` is true, ``others`` elsewhere."""
    if ones is None or others is None:
        return None
    lengths = np.empty(first.size, np.int64)
    lengths[first], lengths[~first] = ones.lengths, others.lengths
    of_ones = np.repeat(first, lengths)
    ids = np.empty(of_ones.size, np.int32)
    ids[of_ones], ids[~of_ones] = ones.ids, others.ids
    return Flat(ids, lengths)


def is_stable(text: str) -> bool:
    """Tell whether a text is not empty and every library agrees on its characters."""
    if text.isascii():
        return text != ""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return bool((character_classes()[codes] & STABLE).all())


def _insert(codes: NDArray[np.uint32], at: NDArray[np.intp], mark: int) -> str:
    """Return the text of ``codes`` with ``mark`` before each position in ``at``."""
    kept = np.ones(codes.size + at.size, np.bool_)
    kept[at + np.arange(at.size)] = False
    marked = np.full(kept.size, mark, np.uint32)
    marked[kept] = codes
    return marked.tobytes().decode("utf-32-le")


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0  # not Linux: the cache is never cleared
