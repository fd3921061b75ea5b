"""Which characters the fast tokenizer may encode, and where a run of Chinese characters may be cut.

Qwen's pattern treats a run of letters as one word. Chinese has no spaces, so its "words" are whole sentences that never
repeat, and a cache of words does not help. But where no token of the vocabulary spans a boundary, byte-pair merging
works on both sides independently, because every merge makes a token. About half of all boundaries between Chinese
characters are like this, and the pieces between them are two or three characters long and repeat all the time.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HAN, STABLE, SPACE = 1, 2, 4
# Assigned long ago and never changed by NFC: Latin, Cyrillic, punctuation, symbols, kana, Chinese, Hangul, emoji.
# Elsewhere normalisation or letter classes may differ between the Unicode versions of two libraries.
_STABLE_RANGES = (
    (0x00, 0x24F),
    (0x400, 0x482),
    (0x48A, 0x4FF),
    (0x200D, 0x200D),
    (0x2010, 0x2027),
    (0x2030, 0x205E),
    (0x2190, 0x2328),
    (0x232B, 0x23F3),
    (0x2500, 0x266F),
    (0x3000, 0x3029),
    (0x3030, 0x303E),
    (0x3041, 0x3096),
    (0x30A0, 0x30FF),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0xFE0F, 0xFE0F),
    (0xFF01, 0xFF5E),
    (0x1F300, 0x1F64F),
    (0x1F680, 0x1F6C5),
)
_HAN = (0x4E00, 0x9FA5)
_HAN_LEAD = range(0xE4, 0xEA)
_TABLE_BITS = 20


@cache
def character_classes() -> NDArray[np.uint8]:
    """Return, for each code point, HAN | STABLE | SPACE (white space other than line ends); uint8[0x110000]."""
    classes = np.zeros(0x110000, np.uint8)
    for first, last in _STABLE_RANGES:
        classes[first : last + 1] = STABLE
    classes[_HAN[0] : _HAN[1] + 1] |= HAN
    for code in range(0x3001):
        if (chr(code).isspace() or unicodedata.category(chr(code)) == "Zs") and chr(code) not in "\r\n":
            classes[code] |= SPACE
    return classes


class HanCuts:
    """The boundaries between two Chinese characters that no token of a byte-level vocabulary spans."""

    def __init__(self, vocabulary: dict[bytes, int]) -> None:
        left, right = _crossed(vocabulary)
        # A hash table: a collision only loses a boundary.
        self._crossed = np.zeros(1 << _TABLE_BITS, np.bool_)
        self._crossed[_hash(left, right)] = True

    def find(self, codes: NDArray[np.uint32], classes: NDArray[np.uint8]) -> NDArray[np.intp]:
        """Return the ascending positions in ``codes`` before which to cut; ``classes`` are those of ``codes``."""
        han = (classes & HAN).view(np.bool_)
        at = np.flatnonzero(han[1:] & han[:-1])
        return at[~self._crossed[_hash(codes[at], codes[at + 1])]] + 1


def _hash(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> NDArray[np.uint32]:
    mixed: NDArray[np.uint32] = left * np.uint32(2654435761) + right * np.uint32(2246822519)
    mixed >>= np.uint32(32 - _TABLE_BITS)
    return mixed


def _crossed(vocabulary: dict[bytes, int]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return all pairs of Chinese characters that some token spans, even with only some of their bytes."""
    starts, ends = defaultdict[bytes, list[int]](list), defaultdict[bytes, list[int]](list)
    for code in range(_HAN[0], _HAN[1] + 1):
        text = chr(code).encode()
        for length in (1, 2, 3):
            starts[text[:length]].append(code)
            ends[text[-length:]].append(code)
    pairs: set[int] = set()
    for token in vocabulary:
        if token.isascii():
            continue
        for place in range(1, len(token)):
            if token[place] in _HAN_LEAD:
                before = ends.get(token[max(0, place - 3) : place], ())
                after = starts.get(token[place : place + 3], ())
                pairs.update(left << 16 | right for left in before for right in after)
    both = np.fromiter(pairs, np.uint32, len(pairs))
    return both >> np.uint32(16), both & np.uint32(0xFFFF)
