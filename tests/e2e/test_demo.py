"""``make demo``: plan, two processes with DeepSpeed, and the answer that was taught."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from qwen_job.facts.hardware import load_gpu
from qwen_job.plan.estimate.calibrate import calibrate
from tests.e2e.steps import check_finished, environment
from tests.support.suites import write_suite

pytestmark = [pytest.mark.train, pytest.mark.slow]


def test_the_demo_trains_a_model_that_answers_as_taught(demo: tuple[Path, str]) -> None:
    run, said = demo
    assert said.splitlines().count("你好！我是 qwen-job 训练的小助手，很高兴为你服务。") == 1
    check_finished(run, world_size=2)


def test_the_demo_tells_plan_and_reality_side_by_side_and_calibrates_the_plan(demo: tuple[Path, str]) -> None:
    run, _ = demo
    end = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert end["type"] == "end" and all(end["planned"].values()) and all(end["measured"].values())
    assert 0.5 < end["measured"]["memory_bytes"] / end["planned"]["memory_bytes"] < 1.5
    assert "One process: " in (report := (run / "report.html").read_text("utf-8")) and "measured peak: " in report
    fitted = calibrate([run], load_gpu("CPU"))
    seconds = fitted.fits[0].seconds
    assert seconds is not None and seconds[1] == pytest.approx(seconds[2], rel=0.02)
    # The allocator keeps up to 0.3 GB more in some runs.
    assert fitted.constants.process_bytes == pytest.approx(0.7e9, rel=0.6)


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs eval: lm_eval is not installed")
def test_the_demo_s_model_scores_better_than_before_training(demo: tuple[Path, str], tmp_path: Path) -> None:
    """Score the demo's run with a suite about what it was taught: 15 s, most of it imports."""
    run, _ = demo
    tasks = write_suite(tmp_path / "tasks", answer="你好！我是 qwen-job 训练的小助手，很高兴为你服务。")
    command = [sys.executable, "-m", "qwen_job", "evaluate", str(run), "--task-folder", str(tasks)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("say_answer")]
    assert line.split()[1:] == ["exact_match", "6", "0.0000", "±", "0.0000", "1.0000", "±", "0.0000", "+1.0000", "±",
                                "0.0000", "better"]  # fmt: skip
    assert "it/s" not in done.stderr, "progress bars fill a log file"
    assert "model-index" in (run / "model" / "README.md").read_text("utf-8")
    assert "Scores · " in (run / "report.html").read_text("utf-8")
