"""Packing keeps every document exactly once, fills rows well, and depends on nothing else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.data.pack import pack


def _slow_best_fit(lengths: list[int], max_length: int) -> list[int]:
    """The textbook's way, one document at a time: the tokens in each row."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, used in enumerate(rows) if used + length <= max_length]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += length
        else:
            rows.append(length)
    return rows


@given(lengths=st.lists(st.integers(1, 50), max_size=200))
def test_conserves_and_is_best_fit(lengths: list[int]) -> None:
    starts, members = pack(np.array(lengths, np.int32), 50)
    assert sorted(members.tolist()) == list(range(len(lengths)))
    rows = [members[a:b] for a, b in pairwise(starts)]
    filled = [int(sum(lengths[number] for number in row)) for row in rows]
    assert all(0 < tokens <= 50 for tokens in filled)
    assert sorted(filled) == sorted(_slow_best_fit(lengths, 50))


def test_real_lengths_fill_rows_well_and_fast() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.8, 200_000), 1, 2048).astype(np.int32)
    starts, _ = pack(lengths, 2048)
    assert lengths.sum() / ((starts.size - 1) * 2048) > 0.99


@pytest.mark.parametrize("length", [0, 51])
def test_refuses_impossible_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="from 1 to 50"):
        pack(np.array([length], np.int32), 50)
