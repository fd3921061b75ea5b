"""The launchers of two pods, each in its own network: one is lost and comes back while the other waits for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conftest import RESULTS
from tests.chaos.run import Run
from tests.chaos.test_chaos import BEGUN
from tests.slurmlab import Lab
from tests.slurmlab.hosts import NETWORK

pytestmark = [pytest.mark.chaos, pytest.mark.slurm, pytest.mark.train, pytest.mark.timeout(1200)]
# As in the pods that we render.
OPTIONS = "--nnodes 2 --nproc_per_node 1 --master_addr node1 --master_port 29500 --rdzv_id pods --rdzv_timeout 240"
COUNTS = "--in_place 3 --max_without_progress 3 --rejoin"


class Pods(Run):
    """The run of ``calm`` in two pods, ``node1`` and ``node2``, whose launchers this starts instead of an operator."""

    def __init__(self, lab: Lab, folder: Path, calm: Run) -> None:
        super().__init__(lab, folder)
        self.path.mkdir(parents=True)
        for name in ("train.yaml", "deepspeed.json"):
            text = (calm.path / name).read_text().replace(f"output_dir: {calm.path}", f"output_dir: {self.path}")
            (self.path / name).write_text(text)
        self.started: dict[str, subprocess.Popen[str]] = {}
        for node in (0, 1):
            self.start(node)

    def start(self, node: int) -> None:
        """Start the launcher of a pod."""
        words = [sys.executable, "-m", "qwen_job.node.launcher", *OPTIONS.split(), *COUNTS.split()]
        words += ["--node_rank", str(node), "--", "--config", str(self.path / "train.yaml")]
        host, log = f"node{node + 1}", self.folder / f"node{node}.out"
        with log.open("a") as stream:
            pod = {"KUBERNETES_SERVICE_HOST": "192.0.2.1"}
            self.started[host] = self.lab.popen(host, words, env=pod, stdout=stream, stderr=stream)

    @property
    def output(self) -> str:
        """What the pods have printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("node*.out")))

    def lose(self, node: int, address: str) -> None:
        """Cut the power of a pod's machine, and start the pod again elsewhere: its name has another address."""
        host = f"node{node + 1}"
        self.lab.crash(host)
        self.started[host].wait(60)
        self.wait_output(f"no sign of life for 8 s from node {node}")
        hosts = self.lab.root / "etc" / "hosts"
        others = [line for line in hosts.read_text().splitlines() if not line.endswith(f" {host}")]
        hosts.write_text("\n".join([*others, f"{address} {host}"]) + "\n")
        self.lab.hosts.start(host, address)
        self.start(node)


@pytest.fixture
def pods(calm: Run, disk: Path) -> Iterator[Pods]:
    with Lab(2) as lab:
        yield Pods(lab, disk / "pods", calm)


def test_lose_pods_that_come_back(calm: Run, pods: Pods) -> None:
    """First the second pod, then the one that all others connect to; the launcher of the other one stays."""
    pods.wait_step(BEGUN)
    stays = pods.started["node1"]
    pods.lose(1, f"{NETWORK}71")
    pods.wait_line("start", 2)
    pods.wait_step(pods.last_step() + 3)
    assert stays.poll() is None, pods.output
    stays = pods.started["node2"]
    pods.lose(0, f"{NETWORK}72")
    for process in pods.started.values():
        assert process.wait(300) == 0, pods.output
    assert pods.started["node2"] is stays
    RESULTS["lose one pod, then the other: each comes back"] = pods.judge(calm)
    said = pods.output
    assert "for node 1 to come back" in said and "waiting up to 240 s for node 0 to come back" in said
