"""Loss and throughput as small curves of block characters, below the table of ``qwen-job watch``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_job.run.metrics import Follower
from qwen_job.run.reading import number, whole
from qwen_job.text import visible

if TYPE_CHECKING:
    from qwen_job.launch.find import Found

_BLOCKS, _PLAIN = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
# A curve needs this many columns to say anything, and no more lines than this to be small.
_LEAST_COLUMNS, _MOST_COLUMNS, _MOST_LINES = 8, 100, 4
_MOST_POINTS = 20_000
_LABEL = 9


@dataclass
class _Run:
    follower: Follower
    steps: list[tuple[int, float | None, float | None]] = field(default_factory=list)

    def update(self) -> None:
        for line in self.follower.new_lines():
            step = whole(line.get("step"))
            if line.get("type") != "step" or step is None:
                continue
            while self.steps and self.steps[-1][0] >= step:
                self.steps.pop()  # trained again after a restart
            self.steps.append((step, number(line.get("loss")), number(line.get("tokens_per_second"))))
        del self.steps[:-_MOST_POINTS]


class Curves:
    """Remembers the runs that are shown, so that each line of their metrics is read once."""

    def __init__(self, encoding: str | None) -> None:
        self._runs: dict[str, _Run] = {}
        try:
            _BLOCKS.encode(encoding or "ascii")
            self._signs = _BLOCKS
        except (UnicodeEncodeError, LookupError):
            self._signs = _PLAIN

    def lines(self, found: Sequence[Found], columns: int, rows: int) -> list[str]:
        """Return curves of the running jobs whose run folders are visible here, in at most ``rows`` lines."""
        shown = [item for item in found if item.entry.state == "running" and item.entry.run]
        known = [(item, steps) for item in shown if len(steps := self._steps(item.entry.run)) > 1]
        width = min(_MOST_COLUMNS, columns - _LABEL - 1)
        if not known or width < _LEAST_COLUMNS:
            return []
        height = min(_MOST_LINES, (rows // len(known) - 2) // 2)
        lines: list[str] = []
        for item, steps in known if height > 0 else []:
            title = f"{item.entry.shown_id} {item.entry.name}, steps {steps[0][0]:,} to {steps[-1][0]:,}"
            lines += ["", visible(title)[:columns]]
            for label, column in (("loss", 1), ("tokens/s", 2)):
                values = [value for step in steps if (value := step[column]) is not None]
                lines += _labelled(label, values, width, height, self._signs)
        return lines

    def _steps(self, run: str) -> list[tuple[int, float | None, float | None]]:
        one = self._runs.setdefault(run, _Run(Follower(Path(run))))
        one.update()
        return one.steps


def _labelled(label: str, values: Sequence[float], width: int, height: int, signs: str) -> list[str]:
    drawn = curve(values, width, height, signs)
    if not drawn:
        return []
    names = [label] if height == 1 else [f"{max(values):.4g}", *[""] * (height - 2), f"{min(values):.4g}"]
    if height > 2:
        names[1] = label
    return [f"{name:>{_LABEL - 1}.{_LABEL - 1}} {line}".rstrip() for name, line in zip(names, drawn, strict=True)]


def curve(values: Sequence[float], width: int, height: int, signs: str = _BLOCKS) -> list[str]:
    """Return ``height`` lines of at most ``width`` characters; each column is the mean of its share of the values."""
    if not values:
        return []
    columns = min(width, len(values))
    edges = [round(index * len(values) / columns) for index in range(columns + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    most = (len(signs) - 1) * height
    # The lowest value is one eighth of a line, so that it is seen.
    levels = [1 + round((mean - low) / (high - low) * (most - 1)) if high > low else most // 2 or 1 for mean in means]
    top = len(signs) - 1
    return [
        "".join(signs[min(top, max(0, level - top * line))] for level in levels) for line in reversed(range(height))
    ]
