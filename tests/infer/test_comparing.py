"""The standard error of a difference: of pairs where the questions are the same, else of two independent scores."""

from __future__ import annotations

import math

import pytest

from qwen_job.infer.comparing import Score, compare

BEFORE = Score("t", "acc", 0.5, 0.29, True, 4, 0, {"0": 1.0, "1": 0.0, "2": 1.0, "3": 0.0})
AFTER = Score("t", "acc", 0.75, 0.25, True, 4, 0, {"0": 1.0, "1": 1.0, "2": 1.0, "3": 0.0})


def test_the_same_questions_are_compared_in_pairs() -> None:
    (one,) = compare([BEFORE], [AFTER])
    # Differences 0, 1, 0, 0: variance 1/4 with n - 1, error sqrt(1/4 / 4).
    assert one.paired and one.difference == 0.25 and one.stderr == pytest.approx(0.25)


def test_other_questions_are_compared_as_independent_scores() -> None:
    (one,) = compare([Score("t", "acc", 0.5, 0.3, True, 4, 0)], [Score("t", "acc", 0.75, 0.4, True, 4, 0)])
    assert not one.paired and one.stderr == pytest.approx(math.hypot(0.3, 0.4))


def test_a_score_without_an_earlier_one_has_no_difference() -> None:
    (one,) = compare(None, [AFTER])
    assert (one.before, one.difference, one.stderr) == (None, None, None)
    (one,) = compare([Score("t", "f1", 0.5, None, True, 4, 0)], [Score("t", "f1", 0.5, 0.1, True, 4, 0)])
    assert (one.difference, one.stderr) == (0.0, None)
