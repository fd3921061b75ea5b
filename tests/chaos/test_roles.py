"""Faults of each process of a job, two at once, and states in memory that are damaged or gone; on two nodes."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.chaos.run import Run
from tests.chaos.test_chaos import BEGUN, overcome
from tests.slurmlab import Lab

pytestmark = [pytest.mark.chaos, pytest.mark.slurm, pytest.mark.train, pytest.mark.timeout(1200)]
IN_MEMORY = {"train__memory_save_steps": 1, "slurm__memory": "4G"}


def test_kill_a_warm_process(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    run.templates()[0].kill()
    overcome("kill -9 the process that ranks are forked from", run, calm)
    assert "restarting all ranks in place" in run.output


@pytest.mark.parametrize("node", [0, 1])
def test_kill_a_launcher(calm: Run, run: Run, node: int) -> None:
    run.wait_step(BEGUN)
    run.launchers()[node].kill()
    overcome(f"kill -9 the launcher of node {node}", run, calm)
    assert "requeueing from checkpoint" in run.output


def test_kill_srun(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    run.srun().kill()
    overcome("kill -9 srun", run, calm)


def test_kill_a_rank_of_the_restart_itself(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    before = run.ranks()
    before[1].kill()
    run.wait_output("restarting all ranks in place (1 of 3")
    deadline = time.monotonic() + 60
    while not (again := [rank for rank in run.ranks() if rank not in before]) and time.monotonic() < deadline:
        pass
    again[0].kill()
    overcome("kill -9 a rank, and one of the restart at once", run, calm)
    assert "restarting all ranks in place (2 of 3" in run.output


def test_kill_a_warm_process_during_the_restart(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    run.kill_rank(1)
    run.wait_output("restarting all ranks in place (1 of 3")
    run.templates()[0].kill()
    overcome("kill -9 a rank, then a warm process during the restart", run, calm)


def test_kill_a_rank_and_a_warm_process_at_once(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    victims = [run.ranks()[0], run.templates()[-1]]
    for victim in victims:
        victim.kill()
    overcome("kill -9 a rank and another node's warm process at once", run, calm)


def test_kill_a_rank_and_a_launcher_at_once(calm: Run, run: Run) -> None:
    run.wait_step(BEGUN)
    victims = [run.ranks()[0], run.launchers()[1]]
    for victim in victims:
        victim.kill()
    overcome("kill -9 a rank and another node's launcher at once", run, calm)


def test_kill_a_rank_in_its_first_second(calm: Run, run: Run) -> None:
    run.wait_ranks()[0].kill()
    overcome("kill -9 a rank in its first second", run, calm)
    assert "restarting all ranks in place (1 of 3" in run.output


@pytest.mark.parametrize("node", [0, 1])
def test_freeze_a_launcher(calm: Run, run: Run, node: int) -> None:
    """Without a spare node, the job is requeued."""
    run.wait_step(BEGUN)
    run.launchers()[node].send_signal(signal.SIGSTOP)
    overcome(f"SIGSTOP the launcher of node {node}", run, calm)
    assert f"no sign of life for 8 s from node {node}" in run.output
    assert "requeueing from checkpoint" in run.output


def stretches(lab: Lab, host: str, what: str) -> list[str]:
    """Run a command on each file of the states of ranks that a host has in memory; return the files."""
    find = "find /dev/shm -path '*/node-*/step-*' -type f ! -name manifest.json"
    done = lab.on(host, f'{find} | while read -r file; do {what}; echo "$file"; done')
    return done.stdout.split()


@pytest.mark.settings(**IN_MEMORY)
def test_corrupt_the_states_in_memory(calm: Run, run: Run, lab: Lab) -> None:
    """The states of both nodes are stopped with their ranks, so that no newer one replaces the damaged ones."""
    run.wait_file("checkpoints/step-5/manifest.json")
    run.wait_step(BEGUN)
    ranks = run.ranks()
    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    flip = "printf '\\377' | dd of=\"$file\" bs=1 seek=1000 conv=notrunc status=none"
    damaged = [stretches(lab, host, flip) for host in ("node1", "node2")]
    assert all(damaged), damaged
    for rank in ranks:
        rank.kill()
    overcome("flip bits in all states in memory", run, calm, intervals=2)
    assert "verified in memory" not in run.output


@pytest.mark.settings(**IN_MEMORY)
def test_lose_the_neighbours_copy_too(calm: Run, run: Run, lab: Lab) -> None:
    """Both nodes' memory is gone, with the ranks: the state comes from storage."""
    run.wait_file("checkpoints/step-5/manifest.json")
    run.wait_step(BEGUN)
    ranks = run.ranks()
    for rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    removed = [stretches(lab, host, 'rm -f "$file"') for host in ("node1", "node2")]
    assert all(removed), removed
    for rank in ranks:
        rank.kill()
    overcome("lose a node's state in memory and its neighbour's copy", run, calm)
    assert "verified in memory" not in run.output


def processes(lab: Lab, host: str) -> list[psutil.Process]:
    """Return all processes of a host."""
    space = Path(f"/proc/{lab.hosts.pid(host)}/ns/pid").stat().st_ino
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/ns/pid").stat().st_ino == space:
                found.append(process)
    return found


@pytest.mark.parametrize("node", [0, 1])
def test_a_frozen_node_that_wakes_up(calm: Run, disk: Path, node: int) -> None:
    """All of a node stands still, Slurm's daemons too; others take over, and it continues while they train.

    The first node runs the batch script, so Slurm requeues the job without it. The other one is replaced by a spare.
    """
    with Lab(3) as lab:
        run = Run(lab, disk / f"frozen{node}", slurm__spare_nodes=node).submit()
        run.wait_step(BEGUN)
        old = run.ranks()[node]
        frozen = processes(lab, f"node{node + 1}")
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        run.wait_line("start", 2)
        assert old.is_running()
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):  # a command of the lab, whose time was up
                process.send_signal(signal.SIGCONT)
        lab.wait(lambda: not old.is_running() or old.status() == "zombie", 60, "the old rank has ended")
        overcome(f"freeze node {node}, wake it while others train", run, calm)
    if node == 1:
        assert "no sign of life for 8 s from node 1" in run.output
        assert "training continues on node1,node3" in run.output
