"""When a run evaluates, saves, reports and ends, by the names of TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.run.config import parse_config
from qwen_job.train.arguments import read_arguments
from qwen_job.train.course import Course, Track
from qwen_job.train.intervals import Due, Intervals
from qwen_job.train.run_state import RunState
from tests.train import tiny

HELD_OUT = {"data__eval_split": 0.2}


def intervals(total: int = 10, rows: int = 40, **changes: Any) -> Intervals:
    """Return the intervals of a run; a step has four rows."""
    config = parse_config(tiny.settings(Path("/run"), **changes)[0], "train.yaml")
    return Intervals(config, read_arguments(config)[0], rows, total)


def steps(found: Intervals, what: str) -> list[int]:
    """Return the steps after which something is due."""
    return [step for step in range(1, found.total + 1) if getattr(found.after_step(step), what)]


def test_saves_follow_save_steps_and_the_last_step_is_saved() -> None:
    assert steps(intervals(training__save_steps=4), "save") == [4, 8, 10]
    assert steps(intervals(training__save_steps=0), "save") == []


def test_evaluations_follow_eval_steps_and_the_last_step_is_evaluated() -> None:
    assert steps(intervals(**HELD_OUT, training__eval_steps=3), "evaluate") == [3, 6, 9, 10]
    assert steps(intervals(training__eval_steps=3), "evaluate") == []  # without held-out rows


def test_no_evaluation_before_eval_delay() -> None:
    delayed = intervals(**HELD_OUT, training__eval_steps=3, training__eval_delay=6.0)
    assert steps(delayed, "evaluate") == [6, 9, 10]


def test_by_epochs_nothing_is_due_within_one() -> None:
    changes = {"training__eval_strategy": "epoch", "training__save_strategy": "epoch", "training__eval_delay": 2.0}
    found = intervals(**HELD_OUT, **changes)
    assert steps(found, "save") == steps(found, "evaluate") == []
    assert found.after_epoch(1.0) == Due(evaluate=False, save=True)
    assert found.after_epoch(2.0) == Due(evaluate=True, save=True)


def test_the_trackers_get_every_so_many_steps_and_the_first_if_asked() -> None:
    found = intervals(training__logging_steps=4, training__logging_first_step=True)
    assert [step for step in range(1, 10) if found.reports(step)] == [1, 4, 8]
    assert not intervals(training__logging_steps=4).reports(1)


@pytest.mark.parametrize(
    ("changes", "patient_until"),
    [
        ({"training__eval_steps": 2}, 9),  # two evaluations, every two steps
        ({"training__eval_strategy": "epoch"}, 25),  # two epochs of ten steps
    ],
)
def test_patience_is_counted_in_evaluations(changes: dict[str, Any], patient_until: int) -> None:
    found = intervals(**HELD_OUT, **changes, training__early_stopping_patience=2)
    assert not found.is_out_of_patience(patient_until - 1, 5)
    assert found.is_out_of_patience(patient_until, 5)
    assert not found.is_out_of_patience(patient_until, None)


def test_the_state_remembers_the_lowest_loss_and_its_step() -> None:
    state = RunState(global_step=3)
    assert state.note_held_out(2.0, saves=True)
    state.global_step = 6
    assert not state.note_held_out(2.0, saves=True)
    assert not state.note_held_out(float("nan"), saves=True)
    assert (state.best_metric, state.best_global_step) == (2.0, 3)
    state.global_step = 9
    assert state.note_held_out(1.0, saves=False)
    assert (state.best_metric, state.best_global_step) == (1.0, 3)  # nothing was saved of the ninth


def test_a_state_that_transformers_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(
        '{"best_global_step": 4, "best_metric": 1.5, "best_model_checkpoint": null, "epoch": 0.5, "global_step": 6,'
        ' "is_local_process_zero": true, "log_history": [], "max_steps": 12, "save_steps": 4, "total_flos": 0}'
    )
    assert RunState.load(tmp_path) == RunState(6, 12, 0.5, 1.5, 4)
    (tmp_path / "trainer_state.json").write_text(RunState(6, 12, 0.5).text())
    assert RunState.load(tmp_path) == RunState(6, 12, 0.5)


def test_a_track_counts_micro_batches_and_epochs() -> None:
    track = Track(Course(), rows=11, micro=2, width=4)  # six micro-batches an epoch: 2, 2 and 2 a step
    assert [track.micro_batches(track.at(step)) for step in range(4)] == [2, 2, 2, 2]
    assert [track.epochs_done(step) for step in (0, 1, 2, 3, 4)] == [0.0, 2 / 6, 4 / 6, 1.0, 1 + 2 / 6]
    odd = Track(Course(), rows=9, micro=2, width=4)  # five micro-batches: the last step has one
    assert [odd.micro_batches(odd.at(step)) for step in range(3)] == [2, 2, 1]


def test_a_track_counts_in_rows_in_the_epoch_where_the_width_changed() -> None:
    track = Track(Course(2, 0, 8), rows=20, micro=2, width=6)
    assert track.epochs_done(3) == 14 / 20
    assert track.micro_batches(track.at(2)) == 3
