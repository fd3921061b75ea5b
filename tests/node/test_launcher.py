"""Nodes that do not meet: within the time given, with the reason and the exit code that says try again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.errors import RendezvousFailed
from qwen_job.train.rendezvous import place_from_environment
from tests.support.ports import free_port
from tests.train import tiny


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--master_addr", "127.0.0.1", *arguments]
    return subprocess.run(command, env=tiny.environment(), capture_output=True, text=True, timeout=120, check=False)


def test_a_node_whose_master_does_not_answer() -> None:
    port = str(free_port())
    done = launch("--nnodes", "2", "--node_rank", "1", "--master_port", port, "--rdzv_timeout", "1")
    assert done.returncode == 162
    assert f"127.0.0.1:{port}" in done.stderr and "check that node 0 was started" in done.stderr


@pytest.mark.train
def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    train_yaml = tiny.write_run(tmp_path / "run")
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "qwen_job.train", "--config", str(train_yaml)],
        env=tiny.environment(**variables, MASTER_PORT=str(free_port()), QWEN_JOB_RENDEZVOUS_SECONDS="2"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 162, done.stderr
    assert "1 of 2 ranks did not check in" in done.stderr or "could not reach the rendezvous" in done.stderr


def test_wrong_numbers_are_usage_errors() -> None:
    assert launch("--nnodes", "2").returncode == 2
    assert launch("--nnodes", "2", "--node_rank", "2", "--master_port", "1").returncode == 2


def test_contradicting_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RendezvousFailed, match="not below WORLD_SIZE"):
        place_from_environment()


def test_the_launcher_imports_no_torch_before_it_must() -> None:
    code = "import sys, qwen_job.node.launcher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
