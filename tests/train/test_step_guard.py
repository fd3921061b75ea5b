"""The step guard by itself: one rank, plain tensors, no engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qwen_job.errors import TrainingDiverged
from qwen_job.run.config import parse_config
from qwen_job.run.metrics import read_metrics
from qwen_job.train.runlog import RunLog
from tests.train import tiny

if TYPE_CHECKING:
    from qwen_job.train.batches import Batch
    from qwen_job.train.step_guard import StepGuard

pytestmark = pytest.mark.train


class Bench:
    """A guard, the settles that it asked for, and steps of one micro-batch of four targets."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        import torch

        from qwen_job.train.ranks import Ranks
        from qwen_job.train.step_guard import StepGuard

        config = parse_config(tiny.settings(folder, **changes)[0], "train.yaml")
        self.folder = folder
        self.settled = 0
        self.guard: StepGuard = StepGuard(
            config,
            Ranks(0, 1, torch.device("cpu")),
            RunLog(folder, active=True),
            source_of=lambda row: f"data.json:{row + 1}",
            settle=self.settle,
        )

    def settle(self) -> int:
        """Note the request; the newest checkpoint is of step 2."""
        self.settled += 1
        return 2

    def step(self, number: int, loss: float, rows: tuple[int, ...] = (5,)) -> float:
        """Judge a step of one micro-batch with this summed loss; returns the loss that is trained on."""
        import torch

        self.guard.begin(number, 4)
        given = self.guard.take(batch(rows), torch.tensor(loss), lambda _broken: torch.tensor(0.0))
        self.guard.judge_loss()
        return float(given)

    def lines(self, action: str) -> list[dict[str, Any]]:
        """Return the guard's lines of metrics.jsonl."""
        return [line for line in read_metrics(self.folder) if line.get("action") == action]


def batch(rows: tuple[int, ...]) -> Batch:
    """Return a batch without tokens that knows its rows."""
    from qwen_job.train.batches import collate

    empty = collate([(-1, None)], 0)
    empty["rows"] = list(rows)
    return empty


def test_a_calm_step_is_sound_and_has_its_mean_loss(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    assert bench.step(1, 8.0) == 8.0
    assert bench.guard.mean_loss == 2.0
    assert bench.guard.sound == 1
    assert bench.guard.is_trained


def test_a_loss_that_is_not_finite_ends_the_run_once_the_save_is_safe(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.step(1, 8.0)
    with pytest.raises(TrainingDiverged, match=r"step 2: the loss is nan on rank 0, rows 7 \(data.json:8\)"):
        bench.step(2, math.nan, rows=(7,))
    assert bench.settled == 1
    assert bench.guard.sound == 1
    assert bench.lines("stop")[0]["rows"] == [[7]]


def test_a_broken_micro_batch_is_replaced_and_counted_where_it_may_be_skipped(tmp_path: Path) -> None:
    bench = Bench(tmp_path, guards__on_nan="skip")
    assert bench.step(1, math.inf) == 0.0
    assert bench.guard.skipped == 1
    assert not bench.guard.is_trained
    assert bench.lines("skip")[0]["skipped"] == 1
    bench.step(2, 8.0)
    assert bench.guard.is_trained
    assert bench.guard.broken == 0


def test_three_steps_in_a_row_without_a_loss_end_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, guards__on_nan="skip")
    bench.step(1, math.nan)
    bench.step(2, math.nan)
    with pytest.raises(TrainingDiverged, match="no row had a finite loss, 3 steps in a row"):
        bench.step(3, math.nan)


def test_a_jump_is_reported_and_is_no_sound_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path, guards__loss_spike_factor=3.0)
    for number in range(1, 13):
        bench.step(number, 8.0)
    bench.step(13, 80.0)
    assert bench.guard.is_jumping
    assert bench.guard.sound == 12
    assert bench.lines("watch")[0]["rows"] == [[5]]


def test_gradients_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.step(1, 8.0)
    bench.guard.judge_update(applied=True, gradient_norm=1.0)
    with pytest.raises(TrainingDiverged, match="step 1: the gradients are not finite"):
        bench.guard.judge_update(applied=True, gradient_norm=math.inf)


def test_an_update_left_out_is_counted_and_the_third_ends_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, guards__on_nan="skip")
    bench.step(1, 8.0)
    for count in (1, 2):
        bench.guard.judge_update(applied=False, gradient_norm=None)
        assert bench.guard.unapplied == count
        assert not bench.guard.is_trained
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        bench.guard.judge_update(applied=False, gradient_norm=None)
    assert [line["skipped"] for line in bench.lines("skip")] == [1, 2]


def test_fp16_may_halve_its_loss_scale_twenty_times(tmp_path: Path) -> None:
    bench = Bench(tmp_path, precision="fp16")
    bench.step(1, 8.0)
    for _ in range(20):
        bench.guard.judge_update(applied=False, gradient_norm=math.inf)
    assert bench.guard.unapplied == 20
    with pytest.raises(TrainingDiverged):
        bench.guard.judge_update(applied=False, gradient_norm=math.inf)


def test_an_update_that_is_applied_ends_the_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, guards__on_nan="skip")
    bench.step(1, 8.0)
    bench.guard.judge_update(applied=False, gradient_norm=None)
    bench.guard.judge_update(applied=True, gradient_norm=1.0)
    assert bench.guard.unapplied == 0
    assert bench.guard.is_trained


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.step(1, 8.0)
    bench.guard.judge_weights(finite=True)
    with pytest.raises(TrainingDiverged, match="the weights are not finite after the update"):
        bench.guard.judge_weights(finite=False)
