"""Scores of a suite, before and after training: the difference, and how sure it is. Plain values, no torch.

- ``Score``: one metric of one task, with its value for every question where the score is their mean
- ``compare``: two lists of scores -> the comparisons that evaluation.json holds
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen_job.run.scores import Comparison


@dataclass(frozen=True)
class Score:
    """A metric of a task. ``answers``: question -> its value; empty unless ``value`` is their mean."""

    task: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool
    samples: int
    few_shot: int | None
    answers: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "answers": dict(self.answers)}


def compare(before: Sequence[Score] | None, after: Sequence[Score]) -> list[Comparison]:
    """Return every score after training beside the same one before it."""
    earlier = {(one.task, one.metric): one for one in before or ()}
    return [_compared(earlier.get((one.task, one.metric)), one) for one in after]


def _compared(before: Score | None, after: Score) -> Comparison:
    stderr, paired = _difference_stderr(before, after) if before else (None, False)
    return Comparison(
        task=after.task,
        metric=after.metric,
        higher_is_better=after.higher_is_better,
        samples=after.samples,
        few_shot=after.few_shot,
        before=before.value if before else None,
        before_stderr=before.stderr if before else None,
        after=after.value,
        after_stderr=after.stderr,
        difference=after.value - before.value if before else None,
        stderr=stderr,
        paired=paired,
    )


def _difference_stderr(before: Score, after: Score) -> tuple[float | None, bool]:
    """Return the standard error of a difference, and whether the same questions were compared one by one.

    The same questions: s / sqrt(n) of their n differences. Otherwise the two errors are taken as independent, which
    is too large for two scores of the same questions. Source: Miller, "Adding Error Bars to Evals", 2024, section 4.
    """
    if len(after.answers) > 1 and before.answers.keys() == after.answers.keys():
        differences = [after.answers[question] - before.answers[question] for question in after.answers]
        return statistics.stdev(differences) / math.sqrt(len(differences)), True
    if before.stderr is None or after.stderr is None:
        return None, False
    return math.hypot(before.stderr, after.stderr), False
