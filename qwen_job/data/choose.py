"""Which samples are repeated, left out or held out: a fixed function of file and row, equal on every machine."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK = 100
_WORD = (1 << 64) - 1


def spread(file: int, row: int) -> float:
    """Return a number in [0, 1) that looks random (splitmix64 of file and row)."""
    value = (file * 0x9E3779B97F4A7C15 + row * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return ((value ^ (value >> 31)) >> 11) / (1 << 53)


def copies(weight: float, file: int, row: int) -> int:
    """Return how often a sample is shown in an epoch: ``weight`` on average over the rows of a file."""
    whole = int(weight)
    return whole + (weight > whole and spread(file, row) < weight - whole)


def copies_of(weights: list[float], files: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.int64]:
    """Return :func:`copies` for each (file, row) of two arrays."""
    import numpy as np

    if all(weight == int(weight) for weight in weights):
        return np.take(np.array([int(weight) for weight in weights], np.int64), files)
    pairs = zip(files.tolist(), rows.tolist(), strict=True)
    return np.array([copies(weights[file], file, row) for file, row in pairs], np.int64)


def held_out(fraction: float, file: int, row: int) -> bool:
    """Tell whether a row (from 1) belongs to the evaluation split: ``fraction`` of every hundred, by hash."""
    return fraction > 0 and row in _held_out_of_block(fraction, file, (row - 1) // _BLOCK)


@lru_cache(maxsize=1024)
def _held_out_of_block(fraction: float, file: int, block: int) -> frozenset[int]:
    quota = int((block + 1) * _BLOCK * fraction) - int(block * _BLOCK * fraction)
    rows = range(block * _BLOCK + 1, (block + 1) * _BLOCK + 1)
    return frozenset(sorted(rows, key=lambda row: spread(file + 0x5EED, row))[:quota])
