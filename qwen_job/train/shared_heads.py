"""Heads of linear attention, divided among the ranks that share a row.

The state and the convolution of linear attention run along the whole row, but each head has its own. So ranks exchange
their slice of the row, with all heads, for the whole row of their part of the heads, and back, as Ulysses does for
attention (arXiv:2309.14509).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SharedHeads(NamedTuple):
    """This rank's part of the heads: part ``number`` of ``size``; ``group`` has the ranks that share its rows.

    With ``size`` 1, every method returns what it is given.
    """

    size: int = 1
    number: int = 0
    group: Any = None

    def whole_row(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Return each of ``blocks`` [1, T / size, C] for all of the row and this rank's part of C: [1, T, C / size].

        C is heads times a head's width, by head. One collective of the group for all blocks.
        """
        if self.size == 1:
            return list(blocks)
        # [size, T / size, C / size] of each, by the rank that gets it.
        parted = [block[0].unflatten(-1, (self.size, -1)).transpose(0, 1) for block in blocks]
        received = self._exchange(torch.cat(parted, dim=-1)).flatten(0, 1)[None]
        return list(received.split([part.shape[-1] for part in parted], dim=-1))

    def own_slice(self, part: Tensor) -> Tensor:
        """Return ``part`` [1, T, C / size] for this rank's slice of the row and all heads: [1, T / size, C].

        A collective of the group.
        """
        if self.size == 1:
            return part
        sent = part[0].unflatten(0, (self.size, -1))
        return self._exchange(sent).transpose(0, 1).flatten(1)[None]

    def own(self, weight: Tensor, blocks: Sequence[int]) -> Tensor:
        """Return this rank's part of each block of rows of ``weight``: blocks of [sum(blocks), ...], each by head."""
        if self.size == 1:
            return weight
        return torch.cat([block.chunk(self.size)[self.number] for block in weight.split(list(blocks))])

    def _exchange(self, parts: Tensor) -> Tensor:
        """Send each of ``parts`` to the rank of its number; returns what the ranks sent, by rank."""
        if ranks_are_apart():
            return parts
        # DeepSpeed's operator, which knows its gradient. share_rows registers the group.
        received: Tensor = torch.ops.deepspeed.dim_zero_all_to_all(parts.contiguous(), self.group.group_name)
        return received


ALONE = SharedHeads()

_apart: list[bool] = []


def ranks_are_apart() -> bool:
    """Tell whether this is within a block of :func:`ranks_apart`."""
    return bool(_apart)


@contextmanager
def ranks_apart() -> Iterator[None]:
    """Exchange nothing within the block, so that a rank can compute a batch alone.

    Shapes are as with an exchange, and whatever has a gradient then has one; the numbers mean nothing.
    """
    _apart.append(True)
    try:
        yield
    finally:
        _apart.pop()
