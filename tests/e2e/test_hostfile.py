"""Hosts reached over ssh, without a scheduler: torchrun on each node, and DeepSpeed's own launcher over pdsh."""

from __future__ import annotations

import functools
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.steps import DEMO, SHORT, check_finished, check_shared_rows, environment, metrics
from tests.slurmlab import Lab
from tests.slurmlab.config import SSH_PORT

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(make_slurm: Callable[..., Lab]) -> Lab:
    """Four hosts with sshd that know nothing of each other's environment; most tests use two."""
    return make_slurm(4, ssh=True)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "pdsh"])
def test_the_rendered_script_trains_on_both_hosts(hosts: Lab, tmp_path: Path, launcher: str) -> None:
    size = 2 if launcher == "torchrun" else 1  # processes of a host, which then share rows
    more = [f"cluster.gpus_per_node={size}", f"train.sequence_parallel_size={size}"]
    run, script = tmp_path / "run", rendered(hosts, tmp_path, launcher, sys.executable, *more)
    done = hosts.on("node1", [str(script)], cwd=tmp_path, env=environment(), timeout=420, check=False)
    logs = "".join(f"\n{log}:\n{log.read_text()[-2000:]}" for log in run.glob("logs/*.log"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    check_finished(run, world_size=2 * size)
    check_shared_rows(run, size=size)


def test_a_node_that_fails_ends_the_others_at_once_and_gives_the_code(hosts: Lab, tmp_path: Path) -> None:
    begun = f"{tmp_path}/begun"
    body = f"if [ $(uname -n) = node1 ]; then touch {begun}; else until [ -e {begun} ]; do sleep 0.1; done; exit 9; fi"
    script = rendered(hosts, tmp_path, "torchrun", stand_in(tmp_path, body))
    began = time.monotonic()
    done = hosts.on("node1", [str(script)], env=environment(), timeout=60, check=False)
    assert done.returncode == 9, done.stderr
    assert time.monotonic() - began < 20
    assert codes(tmp_path) == {"node1": 160, "node2": 9}
    assert "a hang-up" in done.stdout, "node 0's log is shown to its end"


def test_a_folder_that_a_host_does_not_share_is_named_before_training(hosts: Lab, tmp_path: Path) -> None:
    script = rendered(hosts, tmp_path, "torchrun", sys.executable, "output=/tmp/of-one-host/run")
    done = hosts.on("node1", [str(script)], env=environment(), timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert "output: /tmp/of-one-host/run on node2 is not the folder that this host sees: put output on" in done.stderr
    assert hosts.on("node1", ["ls", "/tmp/of-one-host/run/metrics.jsonl"], check=False).returncode == 2


@pytest.mark.parametrize("launcher", ["torchrun", "pdsh"])
def test_a_host_that_is_not_fit_is_named_before_training(hosts: Lab, tmp_path: Path, launcher: str) -> None:
    python = tmp_path / "python"
    unfit = 'if [ "$(uname -n)" = node2 ]; then export QWEN_JOB_CACHE=/proc/none; fi'
    python.write_text(f'#!/bin/bash\n{unfit}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = rendered(hosts, tmp_path, launcher, python, "hostfile.preflight=true")
    done = hosts.on("node1", [str(script)], env=environment(), timeout=60, check=False)
    assert done.returncode == 5, done.stdout + done.stderr
    assert "qwen-job: node2 ended first, with exit code 5; the end of " in done.stderr
    assert "node2: the cache /proc/none is not writable" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_spare_hosts_take_the_place_of_those_that_lose_power(hosts: Lab, tmp_path: Path) -> None:
    """First of the second host, then of the first, whose address all others use. Costs three starts of the demo."""
    run = tmp_path / "run"
    more = ["hostfile.spare_hosts=node[3-4]", "train.num_train_epochs=6", "train.save_steps=2"]
    script = rendered(hosts, tmp_path, "torchrun", sys.executable, *more)

    def trains(attempt: int) -> bool:
        return (run / "metrics.jsonl").exists() and len(metrics(run, "start")) > attempt and saved_since_start(run)

    with hosts.popen("node4", ["bash", str(script)], env=environment()) as launcher:
        try:
            for attempt, lost in enumerate(["node2", "node1"]):
                hosts.wait(functools.partial(trains, attempt), 240, f"attempt {attempt} saves")
                hosts.crash(lost)
            output = "".join(map(str, launcher.communicate(timeout=420)))
        finally:
            for lost in ("node1", "node2"):
                hosts.boot(lost)
    assert launcher.returncode == 0, output
    assert [start["world_size"] for start in metrics(run, "start")] == [2, 2, 2]
    last = json.loads((run / "done.json").read_text())["total_steps"]
    assert {step["step"] for step in metrics(run, "step")} == set(range(1, last + 1))
    assert "node2 gives the other hosts no sign of life" in output
    assert "continues on node1,node3, 1 spare hosts left" in output
    assert "node1 failed" in output and "continues on node4,node3, 0 spare hosts left" in output
    assert (run / "launch" / "hostfile").read_text() == "node4 slots=1\nnode3 slots=1\n"


def saved_since_start(run: Path) -> bool:
    kinds = [json.loads(line)["type"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return "save" in kinds[len(kinds) - kinds[::-1].index("start") :]


def test_a_launcher_that_is_ended_lets_all_nodes_save(hosts: Lab, tmp_path: Path) -> None:
    script = rendered(hosts, tmp_path, "torchrun", stand_in(tmp_path, f"touch {tmp_path}/begun-$(uname -n)"))
    with hosts.popen("node1", ["bash", str(script)], env=environment()) as launcher:
        hosts.wait(lambda: len(list(tmp_path.glob("begun-*"))) == 2, 30, "both nodes run")
        (inside,) = [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["bash", str(script)]]
        inside.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=30)
        assert launcher.returncode == 160
    assert codes(tmp_path) == {"node1": 160, "node2": 160}


def stand_in(folder: Path, body: str) -> Path:
    """Return a Python that runs ``body`` and then, in place of training, waits for a signal and saves."""
    python = folder / "python"
    trap = "for name in USR1 TERM HUP; do trap 'echo a hang-up; sleep 1; exit 160' $name; done"
    python.write_text(f"#!/bin/bash\n{trap}\n{body}\nfor ((i = 0; i < 600; i++)); do sleep 0.1; done\n")
    python.chmod(0o755)
    return python


def codes(folder: Path) -> dict[str, int]:
    """Return node -> exit code, as the nodes wrote them down."""
    lines = [path.read_text().split() for path in (folder / "run" / "launch").glob("exit.*")]
    return {name: int(code) for code, name, _ in lines}


def rendered(hosts: Lab, folder: Path, launcher: str, python: str | Path, *more: str) -> Path:
    """Render the demo for both hosts and return its launch.sh."""
    words = ["qwen-job", "render", str(DEMO), "--target", "hostfile", "-o", str(folder / "launch files"), *SHORT]
    for assignment in (
        "cluster.nodes=2",
        "cluster.gpus_per_node=1",
        f"output={folder / 'run'}",
        "hostfile.hosts=node[1-2]",
        f"hostfile.ssh_options=['-p', '{SSH_PORT}']",
        f"hostfile.launcher={launcher}",
        f"hostfile.python={python}",
        f"hostfile.preflight={str(python == sys.executable).lower()}",
        *more,
    ):
        words += ["--set", assignment]
    hosts.on("node1", words, env=environment())
    return folder / "launch files" / "launch.sh"
