"""A machine that vanishes, or a launcher that is frozen, is noticed by its silence; a pause of one's own is not."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from qwen_job.node import liveness
from qwen_job.node.generations import Connection, Generations, Place
from qwen_job.node.liveness import ALIVE, Beats, Silence
from qwen_job.node.processes import Cold
from qwen_job.node.relay import Relay
from qwen_job.sockets import listen
from tests.node.test_coordinator import Job
from tests.node.test_rejoin import come_back, end_attempt


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be short of patience."""
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(liveness, "SILENCE_SECONDS", 1.5)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(liveness, "time", made)
    return made


def listen_for(silence: Silence, clock: Clock, seconds: float, *talking: int) -> list[int]:
    """Look every half second while some nodes talk; return which are silent at the end."""
    silent: list[int] = []
    for _ in range(int(seconds * 2)):
        clock.now += 0.5
        for node in talking:
            silence.heard(node)
        silent = silence.look([0, 1, 2])
    return silent


def test_only_a_node_that_is_silent_for_long_is_named(clock: Clock) -> None:
    silence = Silence()
    assert listen_for(silence, clock, 60, 0, 1, 2) == []
    assert listen_for(silence, clock, liveness.SILENCE_SECONDS, 0, 2) == []
    assert listen_for(silence, clock, 1, 0, 2) == [1]


def test_a_break_that_tcp_repairs_at_its_sixth_second_is_within_the_bound() -> None:
    retransmissions = 0.2 * (2**5 - 1)
    assert retransmissions + liveness.BEAT_SECONDS < liveness.SILENCE_SECONDS


def test_what_a_process_missed_while_it_was_stopped_does_not_count(clock: Clock) -> None:
    silence = Silence()
    listen_for(silence, clock, 5, 0, 1, 2)
    clock.now += 3600
    assert silence.look([0, 1, 2]) == []
    assert listen_for(silence, clock, 1, 1) == []
    assert listen_for(silence, clock, liveness.SILENCE_SECONDS, 1) == [0, 2]


@pytest.mark.usefixtures("short")
def test_a_peer_that_reads_nothing_holds_up_no_other() -> None:
    full, unread = socket.socketpair()
    full.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            full.send(b"x" * 65536)
    full.setblocking(True)
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    beats = Beats(lambda: [full, ours])
    try:
        for _ in range(3):
            assert json.loads(theirs.recv(100).splitlines()[0]) == {"what": ALIVE}
    finally:
        beats.end()
        for one in (full, unread, ours, theirs):
            one.close()


@pytest.fixture
def job(request: pytest.FixtureRequest, short: None) -> Iterator[Job]:  # noqa: ARG001 (patience first)
    made = Job(3, most=2, rejoin=getattr(request, "param", 0))
    yield made
    for launcher in made.launchers:
        launcher.leave()
    made.coordinator.finish()


def test_a_silent_node_ends_the_job_for_the_others_and_is_named(job: Job) -> None:
    job.start()
    silent = job.launchers.pop(1)
    silent.fall_silent()
    ends = job.hear()
    assert [(end["what"], end["code"]) for end in ends] == [("end", 128)] * 2
    assert ends[0]["why"].endswith("from node 1 (host1)") and "no sign of life" in ends[0]["why"]
    assert job.lost == [(1, "silent")]
    silent.leave()


def test_nodes_that_only_beat_are_not_lost(job: Job) -> None:
    job.start()
    time.sleep(2)  # longer than the silence that is too long
    assert job.fail(0, 1, -9)[0]["what"] == "prepare"
    assert job.lost == []


@pytest.mark.parametrize("job", [20], indirect=True)
def test_a_silent_pod_is_waited_for(job: Job) -> None:
    job.start()
    silent = job.launchers.pop(2)
    silent.fall_silent()
    assert {message["what"] for message in end_attempt(job.launchers, 0)} == {"prepare"}
    come_back(job, 2, 1)
    assert job.start(1)["what"] == "start"
    silent.leave()


def test_a_node_that_hears_nobody_takes_itself_for_cut_off(job: Job) -> None:
    """Node 0's own launcher is on the same machine."""
    job.start()
    for launcher in job.launchers[1:]:
        launcher.fall_silent()
    (end, *_) = job.hear()
    assert end["what"] == "end" and job.lost == []


class NoRequests(Relay):
    """Stop requests never come; a test must not take over the signals of its process."""

    def __init__(self) -> None:
        self.pids, self.used = list, False
        self._deciding, self._waiting = threading.Lock(), True


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("vanishes", "how"), [(True, "silent"), (False, "gone")])
def test_the_others_notice_a_lost_node_0(vanishes: bool, how: str) -> None:
    listening = listen()
    connected = socket.create_connection(("localhost", listening.getsockname()[1]))
    theirs, _ = listening.accept()
    listening.close()
    lost: list[tuple[int, str]] = []
    said: list[str] = []
    place = Place(1, 2, 1, "n0")
    connection = Connection(connected, "job-1", place)
    theirs.sendall(b'{"what": "alive"}\n')
    if not vanishes:
        theirs.close()
    runs = Generations(
        place, connection, Cold([]), NoRequests(), lambda: None, said.append, lambda *node: lost.append(node)
    )
    assert runs.run() == 128
    connection.close()
    theirs.close()
    assert lost == [(0, how)]
    assert ("no sign of life for" in said[0]) is vanishes
