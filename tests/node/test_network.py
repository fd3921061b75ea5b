"""The nodes' network test on this machine's loopback: every node a thread with real connections."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from qwen_job.node import network
from qwen_job.node.preflight import judge_network
from qwen_job.node.ring import bus_bandwidth, suspects
from tests.support.nodes import first_member, verdicts


@pytest.mark.train
@pytest.mark.parametrize("nodes", [2, 3, 5])
def test_all_nodes_hear_the_same_bandwidth(nodes: int) -> None:
    told = verdicts(first_member(nodes), list(range(nodes)))
    assert all(verdict == told[0] for verdict in told)
    assert told[0].gbs is not None and told[0].gbs > 0 and not told[0].unhealthy
    assert max(map(abs, told[0].skews)) < 2


def test_a_node_that_never_comes_is_named() -> None:
    first = first_member(3, meet_seconds=1.0)
    told = verdicts(first, [0, 2])
    assert all((verdict.missing, verdict.unhealthy) == ([1], [1]) for verdict in told)
    finding = judge_network(told[0], first)
    assert (finding.check, finding.state) == ("network", "fault")
    assert "node 1 did not take part" in finding.message


@pytest.mark.parametrize(("attempt", "left_out"), [(0, 1), (1, 0)])
def test_of_two_nodes_each_is_left_out_in_turn(attempt: int, left_out: int) -> None:
    (told,) = verdicts(first_member(2, meet_seconds=0.3, attempt=attempt), [0])
    assert told.unhealthy == [left_out]


def test_a_first_node_that_nobody_reaches_is_at_fault() -> None:
    (told,) = verdicts(first_member(4, meet_seconds=0.3), [0])
    assert told.missing == [1, 2, 3] and told.unhealthy == [0]


@pytest.mark.train
def test_a_network_that_is_slow_everywhere_is_a_warning() -> None:
    first = first_member(3, floor=1e6)
    finding = judge_network(verdicts(first, [0, 1, 2])[0], first)
    assert finding.state == "warning" and "no single node is at fault" in finding.message


def test_a_slow_node_is_told_from_its_neighbours() -> None:
    links = {(a, (a + step) % 5): 10.0 for a in range(5) for step in (1, 2)}
    assert suspects({link: 0.1 if 3 in link else rate for link, rate in links.items()}, 5, 1.0) == [3]
    assert suspects({link: 0.1 if link[0] == 3 else rate for link, rate in links.items()}, 5, 1.0) == [3]
    assert suspects({**links, (3, 4): 0.1}, 5, 1.0) == []
    assert suspects(dict.fromkeys(links, 0.1), 5, 1.0) == []


def test_the_bus_bandwidth_is_that_of_nccl_tests() -> None:
    assert bus_bandwidth(10**9, 1.0, 2) == 1.0
    assert bus_bandwidth(10**9, 0.5, 8) == 3.5


def test_the_first_node_gets_its_verdict_last(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Recorded:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def send(self, value: object) -> None:
            told.append(self.rank)

        def receive(self, seconds: float) -> None: ...

        def close(self) -> None: ...

    def gather(_: object, __: object, lines: dict[int, Any], clocks: dict[int, float]) -> dict[int, Any]:
        lines.update({rank: Recorded(rank) for rank in (1, 0, 2)})
        clocks[0] = 0.0
        return {}

    monkeypatch.setattr(network, "_gather", gather)
    monkeypatch.setattr(network, "_run_test", lambda *_: network.Verdict(1.0, 1, ["a", "b", "c"]))
    with socket.socket() as listener:
        network._judge(first_member(3), listener)
    assert told == [2, 1, 0], "its process ends with its own verdict"
