"""A node whose ranks' store is killed while all nodes prepare, with real processes that stand for ranks and store."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from qwen_job.errors import RendezvousFailed
from qwen_job.node import generations
from qwen_job.node.generations import Connection, Generations, Place
from qwen_job.node.processes import Cold
from qwen_job.sockets import Waiting, reach
from tests.node.test_coordinator import JOB, Job
from tests.node.test_liveness import NoRequests


class Starter(Cold):
    """Ranks that end well at once; the first ``failing`` stores cannot be started, the next ``dying`` are killed."""

    def __init__(self, failing: int = 0, dying: int = 0) -> None:
        super().__init__([])
        self.failing, self.dying = failing, dying
        self.stores = self.ranks = 0

    def start(self, environment: Mapping[str, str]) -> int:
        self.ranks += 1
        return self._run("true")

    def start_store(self) -> tuple[int, int]:
        self.stores += 1
        if self.stores <= self.failing:
            raise ChildProcessError("the process that starts the workers has ended")
        pid = self._run("sleep", "600")
        if self.stores <= self.failing + self.dying:
            os.kill(pid, signal.SIGKILL)
        return pid, 29600

    def _run(self, *words: str) -> int:
        process = subprocess.Popen(words, start_new_session=True)
        self._started[process.pid] = process
        return process.pid

    def end(self) -> None:
        for process in self._started.values():
            process.kill()
            process.wait()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(generations, "_STORE_PAUSE_SECONDS", 0.01)
    made = Job(2, most=2)
    yield made
    for launcher in made.launchers:
        launcher.leave()
    made.coordinator.finish()


def follow(job: Job, begin: Callable[[], bool]) -> None:
    """Be node 1, which is ready once ``begin`` is true, and whose ranks end well at once."""
    launcher = job.join(1)
    with contextlib.suppress(OSError, ValueError):  # the test is over
        while not begin():
            time.sleep(0.01)
        launcher.tell("ready", G=0, port=0)
        while (message := launcher.hear()).get("what") not in (None, "end"):
            if message["what"] == "start":
                launcher.tell("ended", G=message["G"], codes=[], why="", leaving=False)
            elif message["what"] == "prepare":
                launcher.tell("ready", G=message["G"], port=0)


def run_node_0(job: Job, starter: Starter, until: Callable[[Generations], bool] = lambda _: True) -> int | None:
    """Run node 0 beside node 1, which is ready once ``until`` is true of node 0."""
    place = Place(0, 2, 1, "n0")
    connection = Connection(reach("localhost", job.port, Waiting(20)), JOB, place)
    runs = Generations(place, connection, starter, NoRequests(), lambda: None, job.said.append)
    threading.Thread(target=follow, args=(job, lambda: until(runs)), daemon=True).start()
    try:
        return runs.run()
    finally:
        connection.close()
        starter.end()


def test_a_store_that_is_killed_at_its_start_is_started_again(job: Job) -> None:
    starter = Starter(failing=2)
    assert run_node_0(job, starter) == 0
    assert (starter.stores, starter.ranks) == (3, 1)


def test_a_store_that_is_always_killed_ends_the_attempt(job: Job) -> None:
    with pytest.raises(RendezvousFailed, match="cannot start the ranks' store: the process that starts"):
        run_node_0(job, Starter(failing=99))


def test_a_store_that_is_killed_before_the_ranks_start_is_a_restart(job: Job) -> None:
    starter = Starter(dying=1)
    assert run_node_0(job, starter, lambda runs: runs._phase == "ready" and runs._store is None) == 0
    assert (starter.stores, starter.ranks) == (2, 1)
    assert "the process of the ranks' store on" in job.said[0] and "in place (1 of 2" in job.said[0]
