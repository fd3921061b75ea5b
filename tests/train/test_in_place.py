"""Ranks that are killed start again in the same launchers, and the weights are those of an undisturbed run.

Costs four short runs of two ranks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwen_job.run.lease import Lease
from tests.support.ports import free_port
from tests.support.ranks import ranks
from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]
LONG: dict[str, Any] = {"training__max_steps": 40, "training__save_steps": 3, "training__dataloader_num_workers": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs share data, model and prepared rows."""
    return tmp_path_factory.mktemp("in-place")


@pytest.fixture(scope="module")
def calm(home: Path) -> bytes:
    """The weights of an undisturbed run."""
    train_yaml = tiny.write_run(home / "calm", **LONG)
    code, output = tiny.run(train_yaml)
    assert code == 0, output
    return weights(train_yaml)


def weights(train_yaml: Path) -> bytes:
    return (train_yaml.parent / "model" / "model.safetensors").read_bytes()


def below(*launchers: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for one in launchers for child in psutil.Process(one.pid).children(recursive=True)]


def trainers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return what the launcher has started to train: the process that ranks are forked from."""
    return [child for child in psutil.Process(process.pid).children() if "qwen_job.train" in child.cmdline()]


def until(true: Callable[[], Any], *processes: subprocess.Popen[str], seconds: float = 120) -> Any:
    """Wait for a condition while the processes live, and return what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def starts(train_yaml: Path) -> list[dict[str, Any]]:
    metrics = train_yaml.parent / "metrics.jsonl"
    return tiny.metrics(train_yaml.parent, "start") if metrics.exists() else []


def step_of_attempt(train_yaml: Path, number: int) -> int:
    """Return the last step of an attempt, 0 before its first."""
    found, attempt = 0, -1
    for line in (train_yaml.parent / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        attempt += event["type"] == "start"
        if event["type"] == "step" and attempt == number:
            found = event["step"]
    return found


def after_a_step(train_yaml: Path, number: int, process: subprocess.Popen[str]) -> None:
    until(lambda: len(starts(train_yaml)) > number and step_of_attempt(train_yaml, number), process)


def test_whatever_is_killed_the_weights_are_those_of_an_undisturbed_run(home: Path, calm: bytes) -> None:
    train_yaml = tiny.write_run(home / "rough", **LONG)
    process = tiny.start(train_yaml, in_place=5)
    # In the first second of the ranks.
    (first, *_) = until(lambda: tiny.workers(process), process)
    first.send_signal(signal.SIGKILL)
    after_a_step(train_yaml, 0, process)
    killed = tiny.workers(process)[1]
    data_workers = killed.children()
    killed.send_signal(signal.SIGKILL)
    until(lambda: not any(map(lives, data_workers)), process, seconds=4)
    after_a_step(train_yaml, 1, process)
    for rank in tiny.workers(process):  # all at once
        rank.send_signal(signal.SIGKILL)
    after_a_step(train_yaml, 2, process)
    trainers(process)[0].send_signal(signal.SIGKILL)
    after_a_step(train_yaml, 3, process)
    (store,) = set(trainers(process)[0].children()) - set(tiny.workers(process))
    store.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert weights(train_yaml) == calm
    assert [line.get("in_place", 0) for line in starts(train_yaml)] == [1, 2, 3, 4, 5]
    assert "local rank 1" in starts(train_yaml)[1]["after"] and "the ranks' store" in starts(train_yaml)[4]["after"]
    assert json.loads((train_yaml.parent / "heartbeat").read_text())["in_place"] == 5


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def launched(words: list[str], **extra: str) -> subprocess.Popen[str]:
    environment = tiny.environment(**extra)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


class Nodes:
    """Two launchers with one rank each, as on two nodes; ``outputs`` of those that have been replaced come first."""

    def __init__(self, train_yaml: Path, *options: str) -> None:
        self.train_yaml = train_yaml
        self._words = [sys.executable, "-m", "qwen_job.node.launcher", "--nnodes", "2", "--nproc_per_node", "1"]
        self._words += ["--in_place", "2", "--master_port", str(free_port()), *options, "--node_rank"]
        self.launchers = [self.launch(node) for node in (0, 1)]

    def launch(self, node: int) -> subprocess.Popen[str]:
        return launched([*self._words, str(node), "--", "--config", str(self.train_yaml)])

    def power_cut(self, node: int) -> None:
        """Kill all of one node."""
        for process in (*below(self.launchers[node]), self.launchers[node]):
            process.kill()
        self.launchers[node].communicate()

    def end(self) -> None:
        for launcher in self.launchers:
            launcher.kill()
            launcher.communicate()


@pytest.fixture
def two_nodes(home: Path) -> Iterator[Nodes]:
    nodes = Nodes(tiny.write_run(home / f"nodes{free_port()}", **LONG))
    yield nodes
    nodes.end()


def test_all_nodes_restart_together(two_nodes: Nodes, calm: bytes) -> None:
    train_yaml, launchers = two_nodes.train_yaml, two_nodes.launchers
    after_a_step(train_yaml, 0, launchers[0])
    # A stopped rank does not hold up the restart.
    one, other = ranks(below(*launchers))
    one.send_signal(signal.SIGSTOP)
    other.send_signal(signal.SIGKILL)
    outputs = [launcher.communicate(timeout=240)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert weights(train_yaml) == calm
    assert "restarting all ranks in place (1 of 2 without a newer checkpoint)" in outputs[0]


@pytest.mark.parametrize("node", [0, 1])
def test_a_launcher_that_is_killed_ends_the_attempt_on_all_nodes(two_nodes: Nodes, node: int) -> None:
    launchers = two_nodes.launchers
    after_a_step(two_nodes.train_yaml, 0, launchers[0])
    everything = below(*launchers)
    launchers[node].kill()
    output, _ = launchers[1 - node].communicate(timeout=30)
    assert launchers[1 - node].returncode == 128, output
    assert f"the launcher of node {node}" in output
    until(lambda: not any(map(lives, everything)), seconds=20)


def test_a_node_that_is_lost_and_started_again_is_waited_for(home: Path, calm: bytes) -> None:
    """First the second node, then the one that all others connect to; the launcher of the other one stays."""
    nodes = Nodes(tiny.write_run(home / "rejoin", **LONG), "--rejoin", "--rdzv_timeout", "120")
    try:
        after_a_step(nodes.train_yaml, 0, nodes.launchers[0])
        nodes.power_cut(1)
        nodes.launchers[1] = nodes.launch(1)
        after_a_step(nodes.train_yaml, 1, nodes.launchers[0])
        nodes.power_cut(0)
        nodes.launchers[0] = nodes.launch(0)
        after_a_step(nodes.train_yaml, 2, nodes.launchers[1])
        outputs = [launcher.communicate(timeout=240)[0] for launcher in nodes.launchers]
    finally:
        nodes.end()
    assert [launcher.returncode for launcher in nodes.launchers] == [0, 0], outputs
    assert weights(nodes.train_yaml) == calm
    assert [line.get("in_place", 0) for line in starts(nodes.train_yaml)] == [0, 1, 0]
    assert "waiting up to 120 s for node 0 to come back" in outputs[1]


def test_a_final_error_does_not_restart(home: Path) -> None:
    broken: dict[str, Any] = {
        "training__learning_rate": 1e30,
        "training__max_grad_norm": 0.0,
        "training__warmup_ratio": 0.0,
    }
    train_yaml = tiny.write_run(home / "final", **broken)
    process = tiny.start(train_yaml, in_place=3)
    output, _ = process.communicate(timeout=240)
    assert (process.returncode, len(starts(train_yaml))) == (7, 1), output
    assert "in place" not in output


def test_a_rank_of_an_earlier_attempt_that_wakes_up_writes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_yaml = tiny.write_run(home / "stale", training__max_steps=500, training__save_steps=2)
    run = train_yaml.parent
    words = [sys.executable, "-m", "qwen_job.train", "--config", str(train_yaml)]
    process = launched(words, QWEN_JOB_LAUNCH="launch", QWEN_JOB_RESTARTS="0")
    after_a_step(train_yaml, 0, process)
    process.send_signal(signal.SIGSTOP)
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    monkeypatch.setenv("QWEN_JOB_LAUNCH", "launch")
    monkeypatch.setenv("QWEN_JOB_RESTARTS", "1")
    newer = Lease(run, pytest.fail)
    began = time.monotonic()
    newer.take(print)
    assert time.monotonic() - began < 5, "the attempt that follows waits for nobody"

    kept_apart = {"lease", "metrics.jsonl"}

    def files() -> dict[str, int]:
        # What a save under way has not renamed yet is nobody's checkpoint.
        found = [path for path in run.rglob("*") if path.name not in kept_apart and ".partial" not in str(path)]
        return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}

    before, lines = files(), (run / "metrics.jsonl").read_text().splitlines()
    os.kill(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    newer.release()
    assert process.returncode == 2 and "has taken over" in output, output
    assert files() == before
    # It may have been stopped between its look at the lease and the line that it then writes.
    assert (run / "metrics.jsonl").read_text().splitlines()[:-1] in (lines, lines[:-1])
