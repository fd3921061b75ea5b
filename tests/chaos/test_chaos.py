"""Faults of nodes, network, storage and Slurm, one a run: the weights are those of the undisturbed run, bit for bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import RESULTS, mount
from tests.chaos.run import Run
from tests.slurmlab import Lab

pytestmark = [pytest.mark.chaos, pytest.mark.slurm, pytest.mark.train, pytest.mark.timeout(1200)]
LONG = 250  # steps, which take more than a minute
BEGUN = 7  # a step after the first checkpoint, and not one at which a save begins


def overcome(fault: str, run: Run, calm: Run, *, intervals: int = 1) -> None:
    """Wait for the job's end, judge it, and note the result for the table."""
    assert run.wait_end() == "COMPLETED", run.output[-4000:]
    RESULTS[fault] = run.judge(calm, intervals=intervals)


def test_kill_a_data_worker(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    workers = [child for child in run.ranks()[0].children() if "qwen_job.train" in child.cmdline()]
    assert workers
    workers[0].send_signal(signal.SIGKILL)
    overcome("kill a data worker", run, calm)
    assert "a data worker died" in run.output


def test_kill_a_rank(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    run.kill_rank(1)
    overcome("kill -9 a rank", run, calm)


@pytest.mark.settings(train__hang_seconds=30)
def test_stop_a_rank(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    run.ranks()[1].send_signal(signal.SIGSTOP)
    overcome("SIGSTOP a rank (hang_seconds: 30)", run, calm)
    assert "no sign of life from rank 1 on node2" in run.output


def test_power_off_a_node(calm: Run, run: Run, lab: Lab) -> None:
    run.wait_step(BEGUN)
    lab.crash("node1")  # the one that runs the batch script
    time.sleep(10)
    lab.boot("node1")
    overcome("power off a node (the batch script's), boot it after 10 s", run, calm)


def test_power_off_a_node_with_a_spare(calm: Run, disk: Path) -> None:
    with Lab(3) as lab:
        run = Run(lab, disk / "spare", slurm__spare_nodes=1, train__memory_save_steps=1).submit()
        run.wait_step(BEGUN)
        lab.crash("node2")
        overcome("power off a node, with a spare", run, calm)
    assert "training continues on node1,node3, 0 spare nodes left" in run.output
    assert "memory: the state of node 1 comes from the copy on node 0" in run.output


def test_drop_a_nodes_network(calm: Run, run: Run, lab: Lab) -> None:
    run.wait_step(BEGUN)
    lab.cut("node2")
    time.sleep(30)
    lab.restore("node2")
    overcome("drop a node's network for 30 s", run, calm)


def test_fill_the_disk(calm: Run, run: Run, lab: Lab, disk: Path) -> None:
    run.wait_step(BEGUN)
    state = os.statvfs(disk)
    used = (state.f_blocks - state.f_bfree) * state.f_frsize
    mount(["-o", f"remount,size={used + 2**20}", str(disk)])
    try:
        ended = run.wait_end()
    finally:
        mount(["-o", "remount,size=4g", str(disk)])
    assert ended == "FAILED" and "No space left" in run.output, run.output[-4000:]
    assert (lab.job(run.job)["ExitCode"], lab.job(run.job)["Restarts"]) == ("5:0", "0")
    run.submit()
    overcome("fill the disk, make room, submit again", run, calm)


def test_kill_in_the_middle_of_a_save(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    ranks = run.ranks()
    run.wait_file("checkpoints/.step-*.partial/*/*")
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    assert not list(run.path.glob("checkpoints/step-10/manifest.json"))
    overcome("kill all ranks in the middle of a save", run, calm)


@pytest.mark.settings(train__memory_save_steps=0)  # a newer state in memory would go before it
def test_corrupt_the_newest_checkpoint(calm: Run, run: Run) -> None:
    run.wait_file("checkpoints/step-10/manifest.json")
    run.kill_rank(1)
    newest = max(run.path.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as stream:
        stream.seek(1000)
        byte = stream.read(1)[0]
        stream.seek(1000)
        stream.write(bytes([byte ^ 1]))
    overcome("flip a bit in the newest checkpoint", run, calm, intervals=2)
    assert f"{newest.name} is skipped" in run.output


def test_kill_slurmctld(calm: Run, run: Run, lab: Lab) -> None:
    run.wait_step(BEGUN)
    lab.stop_controller()
    run.kill_rank(1)  # while nobody could requeue the job
    time.sleep(30)
    lab.start_controller()
    overcome("kill slurmctld for 30 s, and a rank meanwhile", run, calm)


def test_preempt_by_a_higher_partition(calm: Run, run: Run, lab: Lab) -> None:
    run.wait_step(BEGUN)
    words = ["--partition=high", "--exclusive", "--nodes=2", "--output=/dev/null"]
    urgent = lab.submit("#!/bin/sh\nsleep 5\n", *words)
    lab.wait_job(urgent, "COMPLETED", timeout=90)
    overcome("preempt by a higher partition", run, calm)


@pytest.mark.settings(
    slurm__time="60s", retry__grace="5s", retry__max_retries=30, slurm__signal_seconds=10, train__max_steps=LONG
)
def test_hit_the_time_limit(run: Run, lab: Lab, disk: Path) -> None:
    longer = Run(lab, disk / "longer", train__max_steps=LONG)
    assert run.wait_end(900) == "COMPLETED", run.output[-4000:]
    longer.submit()
    assert longer.wait_end(900) == "COMPLETED", longer.output[-4000:]
    RESULTS["hit the time limit of one minute"] = run.judge(longer)
    assert "signal USR1: saving" in run.output or "the time limit is near" in run.output


def test_output_folder_read_only_for_a_while(calm: Run, run: Run, lab: Lab) -> None:
    run.wait_step(BEGUN)
    path = run.path
    hosts = ("ctl", "node1", "node2")
    for host in hosts:
        lab.on(host, f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")
    try:
        time.sleep(45)
    finally:
        for host in hosts:
            lab.on(host, ["umount", "-l", str(path)])
    overcome("output folder read-only for 45 s", run, calm)
    assert "Read-only file system" in run.output
