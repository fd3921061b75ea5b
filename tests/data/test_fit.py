"""Samples that are too long: the answer is kept, nothing disappears uncounted."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.data.encode import ChatTokenizer, Segment, signed_ids
from qwen_job.data.fit import fit
from qwen_job.run.sections import DataSpec

LENGTH = 96


def _spec(long_samples: str, **others: Any) -> DataSpec:
    return DataSpec.read({"train": ["x"], "max_length": LENGTH, "long_samples": long_samples, **others})


def _parts(system: int, *turns: int) -> list[Segment]:
    """Text tokens are numbered so that each can be recognised."""
    parts = [Segment("system", list(range(100, 100 + system)))] if system else []
    for number, length in enumerate(turns):
        start = 10_000 * (number + 1)
        parts.append(Segment("assistant" if number % 2 else "user", list(range(start, start + length))))
    return parts


def _fit(tokenizer: ChatTokenizer, policy: str, *lengths: int) -> tuple[list[list[int]], Counter[str]]:
    counts: Counter[str] = Counter()
    return fit(_parts(*lengths), tokenizer, _spec(policy), counts), counts


def _trained(document: list[int]) -> list[int]:
    return [number for number in document if number >= 10_000]


def test_what_fits_is_left_alone(tokenizer: ChatTokenizer) -> None:
    documents, counts = _fit(tokenizer, "truncate", 5, 5, 5)
    assert documents == [signed_ids(_parts(5, 5, 5), tokenizer)] and not counts


def test_drop_is_counted(tokenizer: ChatTokenizer) -> None:
    documents, counts = _fit(tokenizer, "drop", 5, 200, 5)
    assert documents == [] and counts == {"long_samples": 1, "dropped": 1}


def test_truncate_cuts_the_middle_of_a_long_question_and_keeps_the_answer(tokenizer: ChatTokenizer) -> None:
    (document,), counts = _fit(tokenizer, "truncate", 5, 500, 20)
    assert len(document) == LENGTH
    assert _trained(document) == list(range(20_000, 20_020))
    assert ~10_000 in document and ~10_499 in document
    assert counts["truncated"] == 1 and counts["answers_cut"] == 0


def test_truncate_drops_the_oldest_exchange_first(tokenizer: ChatTokenizer) -> None:
    (document,), counts = _fit(tokenizer, "truncate", 5, 20, 30, 10, 6)
    assert _trained(document) == list(range(40_000, 40_006))
    assert ~100 in document and ~10_000 not in document and counts["turns_cut"] == 2


def test_a_cut_answer_has_no_end(tokenizer: ChatTokenizer) -> None:
    (document,), counts = _fit(tokenizer, "truncate", 5, 500, 500)
    assert len(document) == LENGTH and counts["answers_cut"] == 1
    assert tokenizer.im_end not in document
    assert _trained(document) == list(range(20_000, 20_000 + len(_trained(document))))


def test_split_cuts_between_exchanges_and_repeats_the_system_prompt(tokenizer: ChatTokenizer) -> None:
    documents, counts = _fit(tokenizer, "split", 5, 20, 20, 20, 21, 20, 22)
    assert [len(_trained(document)) for document in documents] == [20, 21, 22]
    assert all(~100 in document for document in documents) and counts["split_pieces"] == 3


def test_what_continues_an_exchange_longer_than_a_row_is_counted(tokenizer: ChatTokenizer) -> None:
    documents, counts = _fit(tokenizer, "split", 5, 20, 200, 20, 20)
    begun = [~100 in document for document in documents]
    assert begun == [True, False, False, True] and counts["continued_pieces"] == 2
    assert not _fit(tokenizer, "split", 5, 20, 20, 20, 21)[1]["continued_pieces"]


def test_a_piece_of_which_nothing_is_learnt_is_not_counted_as_continued(tokenizer: ChatTokenizer) -> None:
    _, counts = _fit(tokenizer, "split", 5, 250, 5)
    assert (counts["continued_pieces"], counts["pieces_without_answer"]) == (1, 2)


@pytest.mark.parametrize("policy", ["truncate", "split"])
def test_the_cost_grows_with_the_turns_not_with_their_square(tokenizer: ChatTokenizer, policy: str) -> None:
    started = time.process_time()
    documents, counts = _fit(tokenizer, policy, 5, *[2] * 100_000)
    assert time.process_time() - started < 10
    assert max(map(len, documents)) <= LENGTH
    assert policy == "split" or counts["turns_cut"] > 99_900


def test_several_answers_to_one_question_are_cut_from_the_end(tokenizer: ChatTokenizer) -> None:
    parts = [*_parts(5, 5, 6), *[Segment("assistant", list(range(30_000, 30_020)))] * 9]
    counts: Counter[str] = Counter()
    (document,) = fit(parts, tokenizer, _spec("truncate"), counts)
    assert len(document) <= LENGTH and 20_000 in document and 0 < counts["turns_cut"] < 10


@given(
    lengths=st.lists(st.integers(1, 300), min_size=2, max_size=7),
    system=st.integers(0, 200),
    policy=st.sampled_from(["truncate", "split"]),
)
def test_limits_hold_and_order_is_kept(tokenizer: ChatTokenizer, lengths: list[int], system: int, policy: str) -> None:
    documents, counts = _fit(tokenizer, policy, system, *lengths)
    assert all(0 < len(document) <= LENGTH for document in documents)
    trained = [number for document in documents for number in _trained(document)]
    assert trained == sorted(set(trained))
    assert trained, "something of an answer is always left"
    if policy == "split":
        assert len(trained) == sum(lengths[1::2])
    else:
        whole = len(signed_ids(_parts(system, *lengths), tokenizer))
        assert len(documents[0]) == whole - counts["tokens_cut"]
