"""A node that is slow, cut off or never comes is found before training, and the next attempt excludes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.run import Run
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture(scope="module")
def lab(make_slurm: Callable[..., Lab]) -> Lab:
    """Four hosts: three for the job, one to spare. Slurm itself takes its default time to notice that one is down."""
    return make_slurm(4, extra_conf="SlurmdTimeout=300\n")


def checked_only(folder: Path, before: str = "") -> dict[str, object]:
    """Return the settings of a job that is checked in earnest, and whose training is a line of shell."""
    folder.mkdir()
    python, done = folder / "python", folder / "run" / "done.json"
    words = f'#!/bin/bash\n{before}\nif [ "$3" = node ]; then exec {sys.executable} "$@"; fi\ntouch {done}\n'
    python.write_text(words)
    python.chmod(0o755)
    return {"slurm__python": python, "cluster__nodes": 3}


def findings(run: Run, attempt: int) -> dict[str, dict[str, str]]:
    """Return node -> check -> message of one try."""
    found = {}
    for path in (run.path / "launch").glob(f"check.{run.job}-{attempt}.*.json"):
        if path.stat().st_size:
            told = json.loads(path.read_text())
            found[told["host"]] = {finding["check"]: finding["message"] for finding in told["findings"]}
    return found


def test_the_network_between_good_nodes_is_measured(lab: Lab, tmp_path: Path) -> None:
    run = Run(lab, tmp_path / "good", **checked_only(tmp_path / "good")).submit()
    assert run.wait_end(60) == "COMPLETED", run.output
    found = findings(run, 0)
    assert set(found) == {"node1", "node2", "node3"}
    assert {checks["network"].partition(": ")[0].partition(" MiB ")[2] for checks in found.values()} == {
        "between 3 nodes over TCP"
    }


def test_a_slow_node_is_left_out(lab: Lab, tmp_path: Path) -> None:
    settings = checked_only(tmp_path / "slow")
    lab.on("node2", "tc qdisc add dev eth0 root tbf rate 40mbit burst 32kbit latency 400ms")
    try:
        run = Run(lab, tmp_path / "slow", **settings, slurm__min_allreduce_gbs=0.01).submit()
        assert run.wait_end(120) == "COMPLETED", run.output
    finally:
        lab.on("node2", "tc qdisc del dev eth0 root")
    assert "excluding node2, which failed the checks" in run.output
    assert "slow links: node2" in findings(run, 0)["node2"]["link"]
    assert set(findings(run, 1)) == {"node1", "node3", "node4"}
    assert lab.job(run.job)["ExcNodeList"] == "node2"


def test_a_node_that_two_others_do_not_reach_is_left_out(lab: Lab, tmp_path: Path) -> None:
    settings = checked_only(tmp_path / "cut")
    for number in (2, 4):
        lab.on("node3", f"ip route add unreachable 10.77.0.{number}/32")
    try:
        run = Run(lab, tmp_path / "cut", **settings).submit()
        assert run.wait_end(120) == "COMPLETED", run.output
    finally:
        for number in (2, 4):
            lab.on("node3", f"ip route del unreachable 10.77.0.{number}/32")
    assert "no connection from" in run.output


def test_the_only_node_with_a_feature_is_not_left_out(lab: Lab, tmp_path: Path) -> None:
    lab.on("ctl", "scontrol update NodeName=node1 AvailableFeatures=h100,big ActiveFeatures=h100,big")
    wrong = 'if [ "$3" = node ]; then echo "{}"; exit 163; fi'
    settings = {**checked_only(tmp_path / "only", wrong), "cluster__nodes": 1, "retry__max_without_progress": 2}
    run = Run(lab, tmp_path / "only", **settings, slurm__constraint="big").submit()
    assert run.wait_end(120) == "FAILED", run.output
    assert "node1 failed the checks but is kept: too few other nodes satisfy the job" in run.output


def test_a_node_that_cannot_be_spared_stays_and_the_job_gives_up(lab: Lab, tmp_path: Path) -> None:
    wrong = "if [ $(uname -n) = node1 ]; then echo '{}'; exit 163; fi"
    settings = {**checked_only(tmp_path / "all", wrong), "cluster__nodes": 4, "retry__max_without_progress": 2}
    run = Run(lab, tmp_path / "all", **settings).submit()
    assert run.wait_end(120) == "FAILED", run.output
    assert "node1 failed the checks but is kept: main has only 3 other nodes in service" in run.output
    assert lab.job(run.job)["ExitCode"] == "8:0"


def test_a_spare_takes_the_place_of_a_node_that_loses_power(lab: Lab, tmp_path: Path) -> None:
    """The training is a line of shell that waits for the crash and does as the launchers do then. Costs 10 s."""
    folder = tmp_path / "power"
    note = f'run={folder}/run; echo silent > "$run/launch/lost.$(cat "$run/launch/token").1"; exit 128'
    wait = f"touch {folder}/up.$(uname -n); while [ ! -e {folder}/crashed ]; do sleep 0.1; done; {note}"
    hold = f'if [ "$3" != node ] && [ ! -e {folder}/crashed ]; then {wait}; fi'
    settings = {**checked_only(folder, hold), "cluster__nodes": 2, "slurm__spare_nodes": 1}
    run = Run(lab, folder, **settings).submit()
    lab.wait(lambda: len(list(folder.glob("up.*"))) == 2, 60, "both nodes train")
    names = sorted(path.suffix[1:] for path in folder.glob("up.*"))
    assert names == ["node1", "node2"]
    lab.crash("node2")
    (folder / "crashed").touch()
    try:
        lab.wait(lambda: "attempt 0] complete" in run.output, 60, "the spare completes the run")
    finally:
        lab.boot("node2")  # until then Slurm waits for its part of the job
    assert run.wait_end(120) == "COMPLETED", run.output
    assert "failed (exit code 128): training continues on node1,node3, 0 spare nodes left" in run.output
    assert lab.job(run.job)["Restarts"] == "0"
    assert "First task exited 60s ago" not in run.output, "srun was waited for"
    assert "Killed" not in run.output


def test_a_spare_takes_the_place_of_a_node_that_fails_the_checks_and_without_one_the_job_requeues(
    lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "spare"
    wrong = "case $(uname -n) in node1 | node3) echo '{}'; exit 163 ;; esac"
    settings = {**checked_only(folder, wrong), "cluster__nodes": 2, "slurm__spare_nodes": 1}
    run = Run(lab, folder, **settings).submit()
    lab.wait(lambda: "no spare node is left" in run.output, 90, "no spare node is left")
    assert "node1 failed (exit code 163): training continues on node2,node3, 0 spare nodes left" in run.output
    assert "node3 failed, and no spare node is left: 2 are needed, 1 are good" in run.output
    lab.wait(lambda: int(lab.job(run.job)["Restarts"]) > 0, 60, "a requeue")
    lab.on("ctl", f"scancel {run.job}")


@pytest.mark.train
def test_hosts_with_ipv6_alone_whose_names_do_not_resolve_are_checked_and_train(
    make_slurm: Callable[..., Lab], tmp_path: Path
) -> None:
    nameless = make_slurm(2, nameless=True)
    run = Run(nameless, tmp_path / "nameless", train__max_steps=2, slurm__min_allreduce_gbs=0.0001).submit()
    assert run.wait_end(240) == "COMPLETED", run.output
    assert "rendezvous fd77::1" in run.output
    assert "over TCP" in findings(run, 0)["node2"]["network"]
