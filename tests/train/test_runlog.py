"""metrics.jsonl, heartbeat and the progress line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from qwen_job.run.metrics import read_metrics
from qwen_job.train.runlog import RunLog, fruitless_attempts, progress_text

STEP = {"loss": 2.5, "tokens_per_second": 1234.0, "step_seconds": 2.0, "mfu": None}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_every_line_has_type_time_and_step_and_no_nan(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True, stream=io.StringIO())
    log.write("step", 3, loss=float("nan"))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["type"] == "step" and line["step"] == 3 and line["loss"] is None and line["time"] > 0


def test_attempts_are_counted_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    RunLog(tmp_path, active=True, stream=io.StringIO()).write("start", 0)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"type": "st')
    assert RunLog(tmp_path, active=True, stream=io.StringIO()).attempt == 1
    assert len(read_metrics(tmp_path)) == 1


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", active=False, stream=io.StringIO())
    log.step(1, STEP)
    log.heartbeat("done")
    assert not (tmp_path / "run").exists()


def test_the_heartbeat_has_every_key(tmp_path: Path) -> None:
    log = RunLog(tmp_path, active=True, stream=io.StringIO())
    log.total_steps = 10
    log.step(4, STEP)
    beat = json.loads((tmp_path / "heartbeat").read_text())
    assert (beat["state"], beat["step"], beat["total_steps"], beat["eta_seconds"]) == ("training", 4, 10, 12.0)
    log.heartbeat("failed")
    assert json.loads((tmp_path / "heartbeat").read_text())["step"] is None


def test_a_terminal_gets_one_line_that_renews_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    log = RunLog(tmp_path, active=True, stream=stream)
    log.step(1, STEP)
    log.step(2, STEP)
    log.say("hello")
    text = stream.getvalue()
    assert text.count("\r") == 2 and text.endswith("\nhello\n") and "\x1b[36m" not in text


def test_elsewhere_the_first_step_and_then_now_and_then(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = RunLog(tmp_path, active=True, stream=stream)
    for step in range(1, 6):
        log.step(step, STEP)
    assert stream.getvalue().count("\n") == 1


def test_the_progress_text() -> None:
    assert progress_text(5, 10, {**STEP, "mfu": 0.5}, 90) == (
        "step 5/10 · loss 2.5000 · 1,234 tokens/s · MFU 50.0% · 1 min 30 s left"
    )


def line(kind: str, **values: object) -> dict[str, object]:
    return {"type": kind, **values}


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([], 0),
        ([line("start", resumed_from=4)] * 3, 3),
        ([line("start", resumed_from=None), line("save"), line("start", resumed_from=4)], 1),
        ([line("start", resumed_from=4), line("stop", exit_code=161)] * 2, 2),
        ([line("start", resumed_from=4), line("stop", exit_code=8)], 0),
        ([line("start", resumed_from=4), line("stop", exit_code=8), line("start", resumed_from=4)], 1),
    ],
)
def test_attempts_that_come_to_nothing_are_counted(lines: list[dict[str, object]], count: int) -> None:
    assert fruitless_attempts(lines, 4) == count
