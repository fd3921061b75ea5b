"""``make demo``: plan, two processes with DeepSpeed, and the answer that was taught."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.steps import CHECKOUT, check_finished, environment

pytestmark = [pytest.mark.train, pytest.mark.slow]


def test_the_demo_trains_a_model_that_answers_as_taught(tmp_path: Path) -> None:
    run = tmp_path / "demo run"
    done = subprocess.run(
        [CHECKOUT / "scripts" / "demo.sh", run],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "你好！我是 qwen-job 训练的小助手，很高兴为你服务。" in done.stdout
    check_finished(run, world_size=2)
