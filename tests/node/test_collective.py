"""The all-reduce with torch.distributed: the nodes' processes are real, and meet over Gloo on this machine."""

from __future__ import annotations

import pytest

from qwen_job.node.collective import Collective, Group, _read, pairs_of_ring
from qwen_job.node.preflight import judge_network
from tests.support.nodes import first_member, verdicts

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Gloo on this machine, whose own name may lead nowhere."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def test_a_floor_for_gpus_is_held_against_torch_distributed() -> None:
    first = first_member(2, floor=1e-6, collective=True, meet_seconds=30.0)
    both = verdicts(first, range(first.nodes))
    assert both[0] == both[1] and both[0].over == "Gloo"
    finding = judge_network(both[0], first)
    assert finding.state == "ok" and "between 2 nodes over Gloo: " in finding.message
    assert finding.value is not None and finding.value > 1e-6


def test_a_shortfall_is_looked_into_pair_by_pair() -> None:
    first = first_member(3, floor=1e6, collective=True, meet_seconds=30.0)
    verdict = verdicts(first, range(first.nodes))[0]
    finding = judge_network(verdict, first)
    assert finding.state == "warning" and verdict.gbs is not None and verdict.unhealthy == []
    assert "over Gloo" in finding.message and "less than min_allreduce_gbs (1e+06)" in finding.message


def test_without_a_floor_torch_is_not_started() -> None:
    first = first_member(2, collective=True)
    verdict = verdicts(first, range(first.nodes))[0]
    assert verdict.over == "TCP" and judge_network(verdict, first).state == "ok"


def test_a_node_that_stays_away_is_waited_for_until_the_timeout() -> None:
    alone = Collective(0, seconds=3.0)
    answer = alone.run([Group([0, 1], "127.0.0.1", alone.listen())])
    assert answer is not None and answer["error"].endswith(": not finished within 3 s")


def test_what_failed_before_the_others_were_asked_is_the_nodes_own() -> None:
    assert _read("", "Traceback\nModuleNotFoundError: torch\n", 1, 9)["own"]
    crashed = _read('{"stage": "all-reduce over NCCL"}\n', "", -11, 9)
    assert crashed == {"error": "all-reduce over NCCL: exit code -11", "own": False}


@pytest.mark.parametrize("nodes", [2, 3, 4, 7, 8])
def test_the_rounds_of_pairs_hold_every_link_of_the_ring_once(nodes: int) -> None:
    rounds = pairs_of_ring(nodes)
    links = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(links) == len(set(links)) == (nodes if nodes > 2 else 1)
    for pairs in rounds:
        busy = [node for pair in pairs for node in pair]
        assert len(busy) == len(set(busy))
