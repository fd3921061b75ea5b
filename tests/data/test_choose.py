"""Weights and the evaluation split: fixed, fair, and close to what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from qwen_job.data.choose import copies, copies_of, held_out, spread


def test_spread_looks_random_and_never_changes() -> None:
    values = [spread(file, row) for file in range(3) for row in range(1, 1001)]
    assert len(set(values)) == 3000 and 0.48 < np.mean(values) < 0.52
    # The published first output of splitmix64 for seed 0.
    assert spread(0, 0) == (0xE220A8397B1DCDAF >> 11) / 2**53


@pytest.mark.parametrize("weight", [0.25, 1.0, 1.5, 3.0])
def test_copies_average_to_the_weight(weight: float) -> None:
    counts = [copies(weight, 2, row) for row in range(1, 4001)]
    assert abs(np.mean(counts) - weight) < 0.05
    rows = np.arange(1, 4001)
    assert copies_of([1.0, 1.0, weight], np.full(4000, 2), rows).tolist() == counts


@pytest.mark.parametrize("fraction", [0.005, 0.05, 0.3, 0.99])
def test_the_split_takes_its_fraction_and_no_pattern(fraction: float) -> None:
    held = [row for row in range(1, 10_001) if held_out(fraction, 0, row)]
    assert len(held) == round(10_000 * fraction)
    assert abs(sum(row % 2 for row in held) / len(held) - 0.5) < 0.15
