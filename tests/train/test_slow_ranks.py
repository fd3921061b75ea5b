"""What is slow, and what is silent: a rank that the others wait for is named, and a hang is noticed sooner."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_job.cli.status import table
from qwen_job.launch.backend import Entry
from qwen_job.launch.find import Found
from qwen_job.report.page import page
from qwen_job.report.summary import summarize
from qwen_job.run.progress import progress_of
from qwen_job.train.patience import Patience
from qwen_job.train.runlog import RunLog
from qwen_job.train.straggler import WINDOW, WINDOWS, Slow, Stragglers
from qwen_job.train.watchdog import Standing, Watchdog
from tests.train import tiny

pytestmark = pytest.mark.train


def named(stragglers: Stragglers, own: list[float], steps: int, step_seconds: float = 1.0) -> list[Slow]:
    return [slow for _ in range(steps) for slow in stragglers.note(own, step_seconds)]


def test_a_rank_that_is_slow_for_long_is_named_once_and_again_once_it_has_recovered() -> None:
    stragglers = Stragglers(4)
    slow = [0.5, 0.5, 0.8, 0.5]
    assert named(stragglers, slow, WINDOW * WINDOWS - 1) == []
    (found,) = named(stragglers, slow, 1)
    assert (found.rank, found.is_slow, round(found.ratio, 1)) == (2, True, 1.6)
    assert named(stragglers, slow, 10 * WINDOW) == []
    (found,) = named(stragglers, [0.5] * 4, WINDOW * WINDOWS)
    assert (found.rank, found.is_slow) == (2, False)


def test_what_is_no_straggler() -> None:
    assert named(Stragglers(4), [0.5, 0.5, 0.6, 0.5], 10 * WINDOW) == [], "within the usual spread"
    assert named(Stragglers(4), [0.01, 0.01, 0.09, 0.01], 10 * WINDOW) == [], "a small part of the step"
    assert named(Stragglers(1), [9.0], 10 * WINDOW) == []
    spikes, quiet = Stragglers(2), 0
    for step in range(20 * WINDOW):
        quiet += len(spikes.note([0.5, 30.0 if step % 10 == 0 else 0.5], 1.0))
    assert quiet == 0, "single slow steps, such as those after a save"


@pytest.mark.parametrize("ranks", [2, 1024])
def test_of_any_number_of_ranks_the_slow_one_is_found(ranks: int) -> None:
    own = [0.5] * (ranks - 1) + [1.0]
    assert [slow.rank for slow in named(Stragglers(ranks), own, WINDOW * WINDOWS)] == [ranks - 1]


def test_a_slow_rank_is_named_in_log_status_and_report(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = RunLog(tmp_path, active=True, stream=stream)
    log.write("start", 0)
    log.straggler(60, "node\x1b7", Slow(3, 1.62, 0.81, 0.5, is_slow=True))
    log.heartbeat("training", 60)
    assert "rank 3 on node\\x1b7 is slow: 1.6 times the time of the others" in stream.getvalue()
    shown = table([Found(Entry("slurm", "7", "chat", "running"), progress_of(str(tmp_path)))])
    assert "rank 3 on node\\x1b7 is slow" in shown
    assert "action: straggler, rank: 3" in page(summarize(tmp_path))
    log.straggler(120, "node7", Slow(3, 1.0, 0.5, 0.5, is_slow=False))
    log.heartbeat("stopped", 120)
    assert progress_of(str(tmp_path)).stragglers == ()


def test_in_a_real_run_the_slow_rank_is_named(tmp_path: Path) -> None:
    """Two ranks, the second of which waits 0.3 s in each forward pass. 15 to 20 seconds on two cores."""
    train_yaml = tiny.write_run(tmp_path / "run", training__max_steps=15, training__save_steps=100)
    code, output = tiny.run(train_yaml, change="slow 0.3")
    assert code == 0, output
    assert output.count("rank 1 on ") == 1 and "all ranks wait for it" in output
    (guard,) = tiny.metrics(tmp_path / "run", "guard")
    assert (guard["action"], guard["rank"]) == ("straggler", 1) and guard["seconds"] > 0.3 > guard["others"]
    assert guard["host"] != "?"
    beat = json.loads((tmp_path / "run" / "heartbeat").read_text())
    assert beat["stragglers"][0].startswith("rank 1 on ")


def test_patience_follows_the_steps_and_never_leaves_the_ceiling() -> None:
    patience = Patience(900.0)
    assert patience.seconds("computing") == 900.0, "nothing is known yet: layers may still be compiled"
    for _ in range(20):
        patience.passed("fetching", "computing", 2.0)
    assert patience.seconds("computing") == patience.seconds("fetching") == 120.0
    assert patience.seconds("saving") == patience.seconds("evaluating") == 900.0
    patience.passed("saving", "fetching", 500.0)
    patience.passed("evaluating", "fetching", 500.0)
    assert patience.seconds("computing") == 120.0, "a save is no step"
    patience.passed("computing", "computing", 30.0)
    assert patience.seconds("computing") == 300.0
    patience.passed("computing", "fetching", 200.0)
    assert patience.seconds("computing") == 900.0
    assert Patience(30.0).seconds("computing") == 30.0


HANG = """
import sys, time
from pathlib import Path
from qwen_job.train import patience
from qwen_job.train.watchdog import Watchdog
patience._LEAST_SECONDS = 0.3
dog = Watchdog(None, 0, 1, 6, Path(sys.argv[1]))
for step in range(30):
    dog.moved(step, "fetching")
    dog.moved(step, "computing")
dog.moved(31, sys.argv[2])
time.sleep(float(sys.argv[3]))
sys.exit(9)
"""


@pytest.mark.parametrize(("phase", "seconds", "code"), [("computing", 60, 161), ("evaluating", 3, 9), ("saving", 3, 9)])
def test_a_hang_in_a_step_ends_the_run_long_before_hang_seconds(
    tmp_path: Path, phase: str, seconds: int, code: int
) -> None:
    words = [sys.executable, "-c", HANG, str(tmp_path), phase, str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    if code == 161:
        assert "no progress for 0 s" in done.stderr and "its waits were up to" in done.stderr


class _Store:
    """The answers of a store in which rank 1 was last seen in a phase."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def check(self, keys: list[str]) -> bool:
        return keys == ["qwen_job/alive/1"]

    def get(self, _: str) -> str:
        return json.dumps(self._standing)


@pytest.mark.parametrize(
    ("phase", "age", "expected"),
    [("saving", 0.0, 900.0), ("evaluating", 0.0, 900.0), ("computing", 0.0, 120.0), ("saving", 60.0, 120.0)],
)
def test_a_rank_waits_longer_for_one_that_saves_but_not_for_a_silent_one(
    tmp_path: Path, phase: str, age: float, expected: float
) -> None:

    store = _Store(Standing(1, "n1", 31, phase, time.time() - age))
    dog = Watchdog(store, 0, 2, 900.0, tmp_path)  # type: ignore[arg-type]
    dog._thread = object()  # type: ignore[assignment]  # this test takes the thread's place
    for step in range(30):
        dog.moved(step, "fetching")
        dog.moved(step, "computing")
    dog._last -= 200.0
    assert dog._limit(5.0) == expected
    assert dog.host_of(1) == "n1" and dog.host_of(0) == "?"
