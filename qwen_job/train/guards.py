"""Judges the loss of every step, and words the errors that end a run.

- ``LossGuard``: a loss that is not a number or explodes
- ``diverged_message``: where a run broke, and what to do
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# A spike is judged against the smoothed loss of about the last fifty steps, once there are ten. Where little is left to
# learn the loss jumps by large factors and means nothing by it, so it must rise by a nat too.
_SMOOTHING = 0.98
_WARM = 10
_LEAST_JUMP = 1.0
# One mislabelled row can move the loss of a step of few targets by any amount, so a jump must last for this many steps
# in a row with this many targets together. In a step of many targets no single row is the cause.
_LASTING_STEPS = 3
_LASTING_TARGETS = 256
_MANY_TARGETS = 65_536


class Suspect(NamedTuple):
    """A micro-batch whose loss was not finite."""

    rank: int
    rows: list[int]
    sources: list[Any]


class LossGuard:
    """Judges the mean loss of every step."""

    def __init__(self, spike_factor: float | None) -> None:
        self._factor = spike_factor
        self._mean = 0.0
        self._weight = 0.0
        self._seen = 0
        self._jump: list[tuple[float, int]] = []

    @property
    def jumping(self) -> int:
        """Steps in a row whose loss was far above the usual."""
        return len(self._jump)

    @property
    def usual(self) -> float:
        """The smoothed loss so far, 0 before the first step."""
        return self._mean / self._weight if self._weight else 0.0

    def judge(self, loss: float, targets: int) -> str | None:
        """Return what is wrong with a step's mean loss over ``targets`` tokens; None where a jump may still pass."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._seen >= _WARM and loss > self._limit():
            self._jump.append((loss, targets))
            return self._lasting(targets)
        for passed, _ in self._jump:
            self._note(min(passed, self._limit()))
        self._jump.clear()
        self._note(loss)
        return None

    def _limit(self) -> float:
        return math.inf if self._factor is None else max(self._factor * self.usual, self.usual + _LEAST_JUMP)

    def _lasting(self, targets: int) -> str | None:
        total, steps = sum(count for _, count in self._jump), len(self._jump)
        if targets < _MANY_TARGETS and (steps < _LASTING_STEPS or total < _LASTING_TARGETS):
            return None
        mean = sum(loss * count for loss, count in self._jump) / max(1, total)
        lasted = f" in {steps} steps in a row" if steps > 1 else ""
        return f"the loss jumped to {mean:.4g}{lasted}, more than {self._factor:g} times the usual {self.usual:.4g}"

    def _note(self, loss: float) -> None:
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._seen += 1


def diverged_message(
    step: int, reason: str, suspects: Sequence[Suspect], last_checkpoint: int | None, last_sound: int
) -> str:
    """Return where the loss broke, and what the reference guide recommends.

    ``last_sound`` is the last step whose loss was finite: it vouches for the checkpoints before it.
    """
    places = "; ".join(
        f"rank {suspect.rank}, rows {_short(suspect.rows)} ({_short(suspect.sources)})" for suspect in suspects[:4]
    )
    if last_checkpoint is None:
        kept = "no checkpoint yet"
    elif last_checkpoint < last_sound:
        kept = f"checkpoint step-{last_checkpoint} is the last good one"
    else:
        kept = f"no step has shown that checkpoint step-{last_checkpoint} is good: if it is not, delete it"
    fix = (
        "train.loss_spike_factor: null lets such a jump pass"
        if "jumped" in reason
        else "train.on_nan: skip skips such rows and continues"
    )
    return (
        f"step {step}: {reason}" + (f" on {places}" if places else "") + f"; {kept}. Lower learning_rate, lengthen "
        f"the warmup, or look at these rows (qwen-job data check); in job.yaml {fix}{_leave_out(suspects)}"
    )


def _leave_out(suspects: Sequence[Suspect]) -> str:
    rows = sorted({row for suspect in suspects for row in suspect.rows})[:8]
    return f", and train.skip_rows: {rows} resumes without the rows that are named" if rows else ""


def source_of(rows: Any, row: int, files: Sequence[Path]) -> str:
    """Name the user's rows that were packed into a prepared one: file:row, file:row."""
    members = rows[row].source_rows[:4]
    return ", ".join(f"{files[file].name}:{number}" for file, number in members)


def _short(items: Sequence[Any]) -> str:
    text = ", ".join(str(item) for item in items[:6])
    return text + (", ..." if len(items) > 6 else "")
