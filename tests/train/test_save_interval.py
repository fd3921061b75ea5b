"""How often a state is kept in memory follows what a save costs and how often the run fails."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.train.save_interval import History, history_of, steps_between


@pytest.mark.parametrize(
    ("pause", "step", "between", "steps"),
    [
        (0.1, 0.25, None, 40),  # 1% of the time
        (0.1, 0.25, 60.0, 14),  # sqrt(2 * 0.1 * 60) = 3.46 s
        (0.1, 0.25, 3600.0, 107),  # 26.8 s: rare faults leave more time to training than 1% would
        (2.0, 10.0, 86_400.0, 59),  # 588 s
        (0.001, 30.0, 60.0, 1),
        (0.001, 30.0, None, 1),
    ],
)
def test_the_interval_is_1_percent_before_the_first_fault_and_youngs_after_it(
    pause: float, step: float, between: float | None, steps: int
) -> None:
    assert steps_between(pause, step, between) == steps


@pytest.mark.parametrize("between", [20.0, 60.0, 600.0, 86_400.0])
@pytest.mark.parametrize("pause", [0.02, 0.1, 0.5])
def test_no_other_interval_loses_less_time(pause: float, between: float) -> None:
    step = 0.05

    def lost(steps: int) -> float:
        return pause / (steps * step) + steps * step / (2 * between)

    chosen = steps_between(pause, step, between)
    assert lost(chosen) == pytest.approx(min(map(lost, range(1, 20_000))), rel=1e-3)


def run(*endings: dict[str, Any] | None, seconds: float = 50.0) -> list[dict[str, Any]]:
    """Return the metrics of a run whose attempts took ``seconds`` each, then ended so: None by a kill."""
    events: list[dict[str, Any]] = []
    for attempt, ending in enumerate(endings):
        began = 1000.0 * attempt
        events.append({"type": "start", "time": began, "step": 0})
        events.append({"type": "memory", "time": began + 10, "step": 3, "pause_seconds": 0.1 * (attempt + 1)})
        events.append({"type": "step", "time": began + seconds, "step": 4, "step_seconds": 0.5})
        if ending is not None:
            events.append({"time": began + seconds, "step": 4, **ending})
    return events


def test_faults_are_counted_over_the_time_of_all_attempts() -> None:
    assert history_of([]) == History() and History().between_faults(100.0) is None
    killed = history_of(run(None, None))
    assert (killed.faults, killed.seconds, killed.step) == (2, 100.0, 0.5)
    assert killed.pause == pytest.approx(0.15)
    assert killed.between_faults(20.0) == 60.0
    assert killed.reason(20.0) == "Young's interval for a fault every 1 min, as 2 so far suggest"


@pytest.mark.parametrize(
    ("ending", "faults"),
    [
        ({"type": "stop", "exit_code": 160, "reason": "the time limit"}, 0),
        ({"type": "stop", "exit_code": 7, "reason": "the loss is not finite"}, 0),  # a person looked at it
        ({"type": "end", "train_seconds": 50.0}, 0),  # it is extended
        ({"type": "stop", "exit_code": 128, "reason": "another rank went away"}, 1),
        ({"type": "stop"}, 1),
        (None, 1),
    ],
)
def test_an_attempt_that_was_asked_to_stop_or_met_a_final_error_is_no_fault(
    ending: dict[str, Any] | None, faults: int
) -> None:
    assert history_of(run(ending)).faults == faults


def test_only_the_newest_costs_count_and_damaged_lines_do_not() -> None:
    pauses = [9.0] * 10 + [0.1] * 10
    lines = [{"type": "memory", "time": float(n), "step": n, "pause_seconds": p} for n, p in enumerate(pauses)]
    lines += [{"type": "memory", "time": 20.0, "step": 20, "pause_seconds": bad} for bad in (None, "x", -0.0)]
    assert history_of(lines).pause == pytest.approx(0.1)
