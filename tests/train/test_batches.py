"""Rows to steps: each row once an epoch, boundaries kept, whatever the number of ranks."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.train.attention import block_mask, inputs_for  # noqa: E402
from qwen_job.train.batches import EMPTY, IGNORE, StepSampler, collate, empty_like  # noqa: E402


class Row(NamedTuple):
    """A prepared row, as qwen_job.data gives it."""

    input_ids: Any
    labels: Any
    position_ids: Any
    document_lengths: Any


def row(*lengths: int) -> Row:
    """A packed row of documents whose every token is trained."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.int32)
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    return Row(ids, ids.copy(), positions, np.array(lengths, dtype=np.int32))


@pytest.mark.parametrize(("rows", "micro", "accumulation"), [(10, 1, 1), (23, 2, 3), (24, 3, 4), (1, 2, 2)])
def test_steps_hold_the_same_rows_on_any_number_of_ranks(rows: int, micro: int, accumulation: int) -> None:
    def steps(world: int) -> list[list[int]]:
        per_rank = [list(StepSampler(rows, micro, accumulation * 4 // world, rank, world, 5)) for rank in range(world)]
        assert len({len(batches) for batches in per_rank}) == 1
        assert len(per_rank[0]) == len(StepSampler(rows, micro, accumulation * 4 // world, 0, world, 5))
        wide = accumulation * 4 // world
        taken = [
            sorted(
                index
                for batches in per_rank
                for batch in batches[start : start + wide]
                for index in batch
                if index != EMPTY
            )
            for start in range(0, len(per_rank[0]), wide)
        ]
        assert sorted(itertools.chain.from_iterable(taken)) == list(range(rows))
        return taken

    assert steps(1) == steps(2) == steps(4)


def test_epochs_differ_and_repeat() -> None:
    sampler = StepSampler(50, 1, 1, 0, 1, 5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(StepSampler(3, 1, 1, 0, 1, None)) == [[0], [1], [2]]


def test_the_first_step_has_the_longest_rows_whatever_the_ranks_and_the_others_keep_their_order() -> None:
    def first_step(world: int) -> set[int]:
        samplers = [StepSampler(20, 1, 4 // world, rank, world, 5) for rank in range(world)]
        for sampler in samplers:
            sampler.begin_with([7, 3, 11, 0])
        return {row for sampler in samplers for batch in list(sampler)[: 4 // world] for row in batch}

    assert first_step(1) == first_step(2) == first_step(4) == {7, 3, 11, 0}
    plain, longest = (StepSampler(20, 1, 4, 0, 1, 5) for _ in range(2))
    longest.begin_with([7, 3, 11, 0])
    order = longest.order()
    assert order[:4] == [7, 3, 11, 0]
    assert order[4:] == [row for row in plain.order() if row not in {7, 3, 11, 0}]
    longest.set_epoch(1), plain.set_epoch(1)
    assert longest.order() == plain.order()


def test_a_document_never_predicts_the_next_one() -> None:
    batch = collate([(0, row(3, 2)), (1, row(4))], pad_id=0)
    assert batch["targets"].tolist() == [
        [2, 3, IGNORE, 5, IGNORE],
        [2, 3, 4, IGNORE, IGNORE],
    ]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch["document_lengths"] == [[3, 2], [5]]
    assert (batch["tokens"], batch["pairs"]) == (9, 9 + 4 + 16)
    assert batch["chosen"].tolist() == [0, 1, 3, 5, 6, 7]


def test_a_row_that_is_left_out_keeps_its_place() -> None:
    every, sampler = StepSampler(6, 2, 1, 0, 1, 5), StepSampler(6, 2, 1, 0, 1, 5)
    sampler.leave_out([4])
    assert list(sampler) == [[EMPTY if row == 4 else row for row in step] for step in every]


def test_the_mask_is_causal_within_documents() -> None:
    batch = collate([(0, row(2, 2))], pad_id=0)
    mask = block_mask(batch["document_ids"])[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    additive = inputs_for(batch, "eager", torch.float32)["attention_mask"]
    assert ((additive == 0) == mask).all()


def test_single_documents_need_no_mask_and_varlen_gets_boundaries() -> None:
    single = collate([(0, row(3)), (1, row(2))], pad_id=0)
    assert "attention_mask" not in inputs_for(single, "sdpa", torch.float32)
    inputs = inputs_for(collate([(0, row(3, 2)), (1, row(4))], pad_id=0), "varlen", torch.float32)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 3, 5, 10] and inputs["max_length_q"] == 128
    assert inputs["input_ids"].shape == (1, 10)


def test_an_empty_row_teaches_nothing() -> None:
    batch = collate([(0, row(3)), (EMPTY, None)], pad_id=9)
    assert batch["rows"] == [0] and batch["tokens"] == 3
    assert (batch["targets"][1] == IGNORE).all()
    stand_in = empty_like(batch, 9)
    assert stand_in["rows"] == [] and len(stand_in["chosen"]) == 0
    assert stand_in["input_ids"].shape == batch["input_ids"].shape == (2, 3)
    assert collate([(0, row(3))], pad_id=9, length=8)["document_lengths"] == [[8]]
