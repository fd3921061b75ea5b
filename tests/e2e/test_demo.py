"""``make demo``: plan, two processes with DeepSpeed, and the answer that was taught."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.steps import check_finished

pytestmark = [pytest.mark.train, pytest.mark.slow]


def test_the_demo_trains_a_model_that_answers_as_taught(demo: tuple[Path, str]) -> None:
    run, said = demo
    assert said.splitlines().count("你好！我是 qwen-job 训练的小助手，很高兴为你服务。") == 1
    check_finished(run, world_size=2)
