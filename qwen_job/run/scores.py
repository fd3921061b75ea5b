"""``scores`` of evaluation.json: a suite's results before and after training, side by side.

- ``Comparison``: one metric of one task; ``verdict`` says whether a difference is more than chance
- ``read_scores``: what of a damaged or foreign file can be read
- ``save_evaluation``: evaluation.json, with what was measured of the same weights before
- ``score_lines``: the results as a table for a terminal
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_job.atomic import write_atomically
from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import number, read_object, whole
from qwen_job.text import json_text

# A difference of two standard errors or more is called one: by chance alone, 95% are smaller.
_SURE = 2.0
HEADING = ("task", "metric", "questions", "before", "after", "difference", "")


@dataclass(frozen=True)
class Comparison:
    """A score before and after training. ``stderr``: of the difference, None where it is not known.

    ``paired``: the error is that of the questions' own differences, which is smaller than the errors of two scores.
    """

    task: str
    metric: str
    higher_is_better: bool
    samples: int
    few_shot: int | None
    before: float | None
    before_stderr: float | None
    after: float
    after_stderr: float | None
    difference: float | None
    stderr: float | None
    paired: bool

    @property
    def verdict(self) -> str:
        """Return better, worse, or an empty string for a difference that may be chance."""
        if not self.difference or self.stderr is None or abs(self.difference) < _SURE * self.stderr:
            return ""
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the texts of a table's row, under ``HEADING``."""
        return (
            self.task, self.metric, f"{self.samples:,}", _with_error(self.before, self.before_stderr),
            _with_error(self.after, self.after_stderr), _with_error(self.difference, self.stderr, sign="+"),
            self.verdict,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "verdict": self.verdict}


def read_scores(evaluation: Mapping[str, Any]) -> list[Comparison]:
    """Return the comparisons in evaluation.json; entries that are none are left out."""
    scores = evaluation.get("scores")
    listed = scores.get("results") if isinstance(scores, dict) else None
    return [read for one in (listed if isinstance(listed, list) else []) if (read := _read(one)) is not None]


def harness_of(evaluation: Mapping[str, Any]) -> str:
    """Return the name and version of what measured the scores."""
    scores = evaluation.get("scores")
    return str(scores.get("harness") or "") if isinstance(scores, dict) else ""


def _read(value: Any) -> Comparison | None:
    after = number(value.get("after")) if isinstance(value, dict) else None
    if after is None:
        return None
    return Comparison(
        task=str(value.get("task")),
        metric=str(value.get("metric")),
        higher_is_better=value.get("higher_is_better") is not False,
        samples=whole(value.get("samples")) or 0,
        few_shot=whole(value.get("few_shot")),
        before=number(value.get("before")),
        before_stderr=number(value.get("before_stderr")),
        after=after,
        after_stderr=number(value.get("after_stderr")),
        difference=number(value.get("difference")),
        stderr=number(value.get("stderr")),
        paired=value.get("paired") is True,
    )


def save_evaluation(run_dir: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write evaluation.json of a run with what was ``found``, and return it.

    What another evaluation of the same weights measured stays: held-out loss and scores may be measured apart.
    """
    run = RunFolder(run_dir)
    step = read_object(run.done).get("step")
    before = read_object(run.evaluation)
    kept = before if before.get("step") == step else {}
    merged = {**kept, "step": step, **found}
    write_atomically(run.evaluation, json_text(merged, indent=2) + "\n")
    return merged


def score_lines(results: Sequence[Comparison]) -> list[str]:
    """Return a table with aligned columns, and a last line for what got worse."""
    rows = [HEADING, *(one.cells for one in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADING))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    worse = [f"{one.task} ({one.metric})" for one in results if one.verdict == "worse"]
    return [*lines, *([f"worse after training: {', '.join(worse)}"] if worse else [])]


def _with_error(value: float | None, stderr: float | None, sign: str = "") -> str:
    """Return ``0.4210 ± 0.0130``, a dash for None."""
    if value is None:
        return "–"
    return f"{value:{sign}.4f}" + ("" if stderr is None else f" ± {stderr:.4f}")
