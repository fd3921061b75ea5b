"""Which characters the fast tokenizer may encode, and where a run of Chinese characters may be cut.

Qwen's pattern treats a run of letters as one word. Chinese has no spaces, so its "words" are whole sentences that never
repeat, and a cache of words does not help. But where no token of the vocabulary spans a boundary, byte-pair merging
works on both sides independently, because every merge makes a token. About half of all boundaries between Chinese
characters are like this, and the pieces between them are two or three characters long and repeat all the time.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

HAN, STABLE, SPACE = 1, 2, 4
# Characters that NFC never changes and that every library puts into the same class. Letters, digits and marks were
# assigned long ago. Symbols may be recent: Qwen's patterns treat them as they treat unassigned code points.
_STABLE_RANGES = (
    (0x00, 0x24F),  # Latin
    (0x391, 0x3A1),  # Greek
    (0x3A3, 0x3CE),
    (0x400, 0x482),  # Cyrillic
    (0x48A, 0x4FF),
    (0x5D0, 0x5EA),  # Hebrew
    (0x621, 0x64A),  # Arabic
    (0x660, 0x66D),
    (0x671, 0x6D3),
    (0x1E00, 0x1E99),  # Latin of Vietnamese and others
    (0x1EA0, 0x1EF9),
    (0x200D, 0x200D),
    (0x2010, 0x2027),
    (0x2030, 0x205E),
    (0x2074, 0x208E),
    (0x20A0, 0x20CF),  # currencies
    (0x2100, 0x2125),  # letters as symbols
    (0x2127, 0x2129),
    (0x212C, 0x214D),
    (0x2153, 0x2182),
    (0x2190, 0x2328),  # arrows, mathematics
    (0x232B, 0x23FF),
    (0x2460, 0x27FF),  # enclosed numbers, boxes, dingbats
    (0x2900, 0x297F),
    (0x2B00, 0x2BFF),
    (0x3000, 0x3029),  # Chinese and Japanese
    (0x3030, 0x303E),
    (0x3041, 0x3096),
    (0x30A0, 0x30FF),
    (0x3220, 0x3243),
    (0x3280, 0x32B0),
    (0x3300, 0x33FF),
    (0x3400, 0x4DB5),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),  # Hangul
    (0xFE0F, 0xFE0F),
    (0xFF01, 0xFF5E),
    (0xFF61, 0xFF9F),
    (0xFFE0, 0xFFE6),
    (0x1F1E6, 0x1F1FF),  # emoji
    (0x1F300, 0x1F6FF),
    (0x1F900, 0x1F9FF),
    (0x1FA70, 0x1FAFF),
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
    pairs: set[int] = set()
    for token in vocabulary:
        if token.isascii():
            continue
        for place in range(1, len(token)):
            if token[place] in _HAN_LEAD:
                after = _starting_with(token[place : place + 3])
                pairs.update(left << 16 | right for left in _ending_with(token[max(0, place - 3) : place])
                             for right in after)  # fmt: skip
    both = np.fromiter(pairs, np.uint32, len(pairs))
    return both >> np.uint32(16), both & np.uint32(0xFFFF)


@cache
def _starting_with(prefix: bytes) -> range:
    """Return the Chinese characters whose UTF-8 starts with 1 to 3 bytes, of which the first is a lead byte of one."""
    if any(not 0x80 <= byte < 0xC0 for byte in prefix[1:]):
        return range(0)
    free = 6 * (3 - len(prefix))
    first = (prefix[0] & 15) << 12
    for shift, byte in zip((6, 0), prefix[1:], strict=False):
        first |= (byte & 63) << shift
    return range(max(first, _HAN[0]), min(first + (1 << free) - 1, _HAN[1]) + 1)


@cache
def _ending_with(suffix: bytes) -> range:
    """Return the Chinese characters whose UTF-8 ends with 1 to 3 bytes."""
    if len(suffix) == 3:
        return _starting_with(suffix) if suffix[0] in _HAN_LEAD else range(0)
    if any(not 0x80 <= byte < 0xC0 for byte in suffix):
        return range(0)
    last, step = 0, 1
    for byte in suffix:
        last, step = last << 6 | byte & 63, step << 6
    return range(_HAN[0] + (last - _HAN[0]) % step, _HAN[1] + 1, step)
