"""Launchers agree on attempts: scripted launchers, one connection each, no torch."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_job.node import coordinator as coordinators
from qwen_job.node.coordinator import Budget, Coordinator, Exit, restartable
from qwen_job.node.liveness import ALIVE, Beats
from qwen_job.sockets import listen

JOB = "job-1"


class Launcher:
    """One scripted launcher."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("localhost", port), timeout=20)
        self._lines = self.socket.makefile("rb")
        self._beats = Beats(lambda: [self.socket])

    def tell(self, what: str, **message: Any) -> None:
        self.socket.sendall(json.dumps({"what": what, **message}).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        while line := self._lines.readline():
            if (message := dict(json.loads(line)))["what"] != ALIVE:
                return message
        return {}

    def fall_silent(self) -> None:
        """Be a machine without power: the connection stays, and nothing more comes."""
        self._beats.end()

    def leave(self) -> None:
        self._beats.end()
        self._lines.close()
        self.socket.close()


class Job:
    """A coordinator and the launchers of ``nodes`` nodes."""

    def __init__(self, nodes: int, most: int, timeout: float = 20, rejoin: float = 0) -> None:
        self.nodes, self.newest, self.said = nodes, -1, list[str]()
        self.lost: list[tuple[int, str]] = []
        listening = listen()
        self.port = int(listening.getsockname()[1])
        budget = Budget(most, lambda: self.newest)
        say = self.said.append
        lost = lambda node, how: self.lost.append((node, how))  # noqa: E731
        self.coordinator = Coordinator(listening, JOB, nodes, timeout, budget, say, lost=lost, rejoin=rejoin)
        self.coordinator.begin()
        self.launchers: list[Launcher] = []

    def join(self, node: int, job: str = JOB, nodes: int | None = None) -> Launcher:
        launcher = Launcher(self.port)
        launcher.tell("hello", job=job, node=node, nodes=nodes or self.nodes, host=f"host{node}")
        self.launchers.append(launcher)
        return launcher

    def start(self, generation: int = 0) -> dict[str, Any]:
        """Bring all nodes into attempt ``generation``."""
        for node in range(len(self.launchers), self.nodes):
            self.join(node)
        for node, launcher in enumerate(self.launchers):
            launcher.tell("ready", G=generation, port=0 if node else 29600 + generation)
        (first, *others) = self.hear()
        assert all(other == first for other in others)
        return first

    def hear(self) -> list[dict[str, Any]]:
        return [launcher.hear() for launcher in self.launchers]

    def fail(self, generation: int, node: int, code: int, *, others: list[int] | None = None) -> list[dict[str, Any]]:
        """Let a rank of one node fail; return the decision that each node hears."""
        self.launchers[node].tell("over", G=generation, code=code, why="a rank was killed", grace=0.0)
        assert {message["what"] for message in self.hear()} == {"over"}
        for number, launcher in enumerate(self.launchers):
            codes = [code] if number == node else (others or [])
            launcher.tell("ended", G=generation, codes=codes, why="", leaving=False)
        return self.hear()


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job(2, most=2)
    yield made
    for launcher in made.launchers:
        launcher.leave()
    made.coordinator.finish()


def test_all_nodes_start_together_with_the_store_of_node_0(job: Job) -> None:
    started = job.start()
    assert (started["what"], started["G"], started["port"], started["after"]) == ("start", 0, 29600, "")


def test_a_killed_rank_restarts_all_nodes_in_place(job: Job) -> None:
    launch = job.start()["launch"]
    assert [message["what"] for message in job.fail(0, 1, -9)] == ["prepare", "prepare"]
    again = job.start(1)
    assert (again["G"], again["port"], again["launch"], again["after"]) == (1, 29601, launch, "a rank was killed")
    assert "a rank was killed: restarting all ranks in place (1 of 2" in job.said[-1]


def test_restarts_without_a_newer_checkpoint_are_limited(job: Job) -> None:
    job.start()
    for generation in (0, 1):
        (prepare, _) = job.fail(generation, 1, -9)
        assert prepare["what"] == "prepare" and prepare["pause"] == generation
        job.start(generation + 1)
    (end, _) = job.fail(2, 0, -9)
    assert (end["what"], end["code"]) == ("end", 128)
    assert "2 restarts in place (retry.in_place) reached no newer checkpoint" in end["why"]


def test_a_newer_checkpoint_gives_new_restarts(job: Job) -> None:
    job.start()
    for generation in range(6):
        (prepare, _) = job.fail(generation, generation % 2, -9)
        assert (prepare["what"], prepare["pause"]) == ("prepare", 0)
        job.newest += 5
        job.start(generation + 1)


@pytest.mark.parametrize("code", [1, 4, 8, 127, 160, 162, 163])
def test_a_code_that_a_restart_does_not_cure_ends_the_job(job: Job, code: int) -> None:
    job.start()
    assert [message["what"] for message in job.fail(0, 1, code)] == ["end", "end"]


def test_a_final_code_of_another_node_counts_too(job: Job) -> None:
    job.start()
    assert job.fail(0, 1, -9, others=[4])[0]["what"] == "end"


@pytest.mark.parametrize(
    ("exits", "again"),
    [
        ([Exit([-9]), Exit([])], True),
        ([Exit([161]), Exit([128, 161])], True),
        ([Exit([-11], leaving=True), Exit([])], False),
        ([Exit([-9]), Exit([], fault="no GPU")], False),
    ],
)
def test_what_is_restarted(exits: list[Exit], again: bool) -> None:
    assert restartable(exits) is again


def test_a_job_whose_ranks_all_succeed_ends_with_0(job: Job) -> None:
    job.start()
    for launcher in job.launchers:
        launcher.tell("ended", G=0, codes=[], why="", leaving=False)
    assert [(message["what"], message["code"]) for message in job.hear()] == [("end", 0)] * 2


def test_a_rank_that_is_killed_after_another_node_has_finished(job: Job) -> None:
    job.start()
    first, second = job.launchers
    first.tell("ended", G=0, codes=[], why="", leaving=False)
    second.tell("over", G=0, code=-9, why="killed", grace=0.0)
    assert first.hear()["what"] == second.hear()["what"] == "over"
    second.tell("ended", G=0, codes=[-9], why="killed", leaving=False)
    assert first.hear()["what"] == second.hear()["what"] == "prepare"


def test_a_late_line_of_an_earlier_attempt_has_no_effect(job: Job) -> None:
    job.start()
    job.fail(0, 1, -9)
    job.start(1)
    job.launchers[1].tell("over", G=0, code=-9, why="an old worker", grace=0.0)
    job.launchers[1].tell("ended", G=0, codes=[4], why="", leaving=False)
    assert job.fail(1, 0, -9)[0]["what"] == "prepare"


def test_a_launcher_that_is_gone_ends_the_job_for_all(job: Job) -> None:
    job.start()
    job.launchers.pop().leave()
    (end,) = job.hear()
    assert (end["what"], end["code"]) == ("end", 128)
    assert "the launcher of node 1 (host1) is gone" in end["why"]
    assert job.lost == [(1, "gone")]


def test_a_node_that_fails_its_check_before_a_restart_ends_the_job(job: Job) -> None:
    job.start()
    job.fail(0, 1, -9)
    job.launchers[1].tell("fault", G=1, why="host1: nvidia-smi failed")
    assert [message["why"] for message in job.hear()] == ["host1: nvidia-smi failed"] * 2


def test_a_node_that_leaves_before_all_have_met_may_come_back(job: Job) -> None:
    job.join(1).leave()
    job.launchers.clear()
    job.join(0)
    job.join(1)
    assert job.start()["what"] == "start"


@pytest.mark.parametrize(
    ("node", "name", "nodes", "words"),
    [
        (0, JOB, 2, "node 0 is already taken by host0: each node needs its own --node_rank"),
        (1, "job-0", 2, f"another job ({JOB}) uses this port"),
        (2, JOB, 3, "it was started as node 2 of 3, and node 0 expects 2 nodes"),
    ],
)
def test_a_launcher_that_does_not_belong_is_refused(job: Job, node: int, name: str, nodes: int, words: str) -> None:
    job.join(0)
    stranger = Launcher(job.port)
    stranger.tell("hello", job=name, node=node, nodes=nodes, host="elsewhere")
    assert stranger.hear() == {"what": "refused", "why": words}
    job.join(1)
    assert job.start()["what"] == "start"


@pytest.mark.parametrize(
    "rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"what": 1}\n{"what": "ready"}\n', b"x" * 200_000]
)
def test_a_stranger_on_the_port_is_dropped(job: Job, rubbish: bytes) -> None:
    stranger = Launcher(job.port)
    with contextlib.suppress(OSError):  # it may be dropped before the end of the line
        stranger.socket.sendall(rubbish)
        stranger.socket.shutdown(socket.SHUT_WR)
    assert job.start()["what"] == "start"
    stranger.leave()


def test_nodes_that_do_not_come_are_named() -> None:
    job = Job(3, most=1, timeout=0.1)
    job.join(1)
    (end,) = job.hear()
    assert end["code"] == 162 and "2 of 3 nodes did not connect within 0 s (missing: 0, 2)" in end["why"]


def test_a_frozen_launcher_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinators, "_ENDED_SECONDS", 0.2)
    job.start()
    job.launchers[0].tell("over", G=0, code=-9, why="killed", grace=0.0)
    job.hear()
    job.launchers[0].tell("ended", G=0, codes=[-9], why="", leaving=False)
    (end, _) = job.hear()
    assert end["what"] == "end" and "from node 1 (host1)" in end["why"]
