"""Documents as constant tokens around texts, and how their tokens are joined: no Python object for each token.

A document is ``constant text constant text ... constant``. Constants (control tokens, role names) are encoded once.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qwen_job.data.encode import Flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Document(NamedTuple):
    """One sequence before its texts are encoded.

    Attributes:
        constants: one more than texts, numbers in a :class:`Constants`.
        texts: what is between the constants.
        learnt: for each text, whether it is learnt.
        turns: the indices of the learnt turns of its conversation.
    """

    constants: list[int]
    texts: list[str]
    learnt: list[bool]
    turns: tuple[int, ...] = ()


class Constants:
    """Signed tokens (an ID, or ``~ID`` where it is not learnt) by number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, ...], int] = {}
        self._tokens: list[int] = []
        self._starts = [0]
        self._arrays: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None

    def number(self, signed: tuple[int, ...]) -> int:
        """Return the number of these tokens; equal tokens have the same one."""
        known = self._numbers.get(signed)
        if known is None:
            known = self._numbers[signed] = len(self._numbers)
            self._tokens += signed
            self._starts.append(len(self._tokens))
            self._arrays = None
        return known

    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return all tokens, int32[n], and where each constant starts in them, int64[constants + 1]."""
        if self._arrays is None:
            self._arrays = np.array(self._tokens, np.int32), np.array(self._starts, np.int64)
        return self._arrays


def join_documents(
    documents: Sequence[Document], flat: Flat, which: NDArray[np.int64] | None, constants: Constants
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the signed tokens of all documents, int32[n], and the length of each, int64[documents].

    ``flat`` holds the tokens of all their texts, one after the other; or, with ``which``, those of different texts, and
    ``which`` the number in it of each of theirs, int64[texts].
    """
    tokens, starts = constants.arrays()
    used = np.fromiter(chain.from_iterable([document.constants for document in documents]), np.int64)
    learnt = np.fromiter(chain.from_iterable([document.learnt for document in documents]), np.bool_)
    texts = np.fromiter([len(document.texts) for document in documents], np.int64)
    # Parts in order: constant, text, constant, ... of each document; the same place counted in texts and constants.
    firsts = np.cumsum(2 * texts + 1) - (2 * texts + 1)
    of_constants = np.arange(used.size) * 2 - np.repeat(np.arange(texts.size), texts + 1)
    of_texts = np.arange(learnt.size) * 2 + 1 + np.repeat(np.arange(texts.size), texts)
    # Where each part's tokens are in the pool, how many, and what they are combined with: -1 makes ~ID of an ID.
    sizes, begins, masks = (np.empty(used.size + learnt.size, kind) for kind in (np.int64, np.int64, np.int32))
    sizes[of_constants], begins[of_constants], masks[of_constants] = starts[used + 1] - starts[used], starts[used], 0
    at = tokens.size + np.cumsum(flat.lengths) - flat.lengths
    text_sizes, text_begins = (flat.lengths, at) if which is None else (flat.lengths[which], at[which])
    sizes[of_texts], begins[of_texts], masks[of_texts] = text_sizes, text_begins, np.where(learnt, 0, -1)
    signed = np.concatenate([tokens, flat.ids])[_places(begins, sizes)]
    signed ^= np.repeat(masks, sizes)
    return signed, np.add.reduceat(sizes, firsts)


def _places(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of runs of ``lengths`` that begin at ``begins``."""
    ends = np.cumsum(lengths)
    places: NDArray[np.int64] = np.arange(int(ends[-1]) if ends.size else 0) + np.repeat(
        begins - ends + lengths, lengths
    )
    return places
