"""Test whether the nodes of a job can reach each other, and how fast. All nodes take part; the first one judges.

Each node connects to the first one, which sends it the list of nodes, has them connect in a ring, and runs an
all-reduce over the ring (ring.py). On GPUs with a minimum bandwidth, torch.distributed then runs one over NCCL
(collective.py). If it fails or is slower than the minimum, the links are measured one by one to find the node at fault,
which the requeued job excludes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from qwen_job.node.collective import Collective, Group, pairs_of_ring
from qwen_job.node.ring import MEBIBYTE, STEP_SECONDS, Line, Peer, Ring, bus_bandwidth, suspects
from qwen_job.sockets import CONNECT_SECONDS, Waiting, listen, plain, reach

# Nodes start at different times: one may have to pull the image first.
MEET_SECONDS = 300.0
LARGEST, TARGET_SECONDS = 16 * MEBIBYTE, 0.2


@dataclass(frozen=True)
class Member:
    """One of ``nodes`` nodes in the test; the first one listens at ``host``:``port``.

    ``floor`` is the minimum bandwidth in GB/s (0: none) over TCP, or over torch.distributed with ``collective`` (a job
    on GPUs). If one of several nodes must be at fault and it is unknown which, a different one is excluded in each
    ``attempt``.
    """

    rank: int
    nodes: int
    host: str
    port: int
    token: str = ""
    floor: float = 0.0
    attempt: int = 0
    meet_seconds: float = MEET_SECONDS
    collective: bool = False


@dataclass(frozen=True)
class Verdict:
    """The result, which the first node sends to all.

    ``gbs`` was measured with ``size`` bytes ``over`` TCP, NCCL or Gloo. ``missing``: ranks that did not take part;
    ``unhealthy``: all ranks at fault, including those. ``skews``: each clock's offset from the median, in seconds.
    """

    gbs: float | None = None
    size: int = 0
    names: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    unhealthy: list[int] = field(default_factory=list)
    trouble: str = ""
    skews: list[float] = field(default_factory=list)
    over: str = "TCP"


def node_name() -> str:
    """Return the name by which the scheduler knows this node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_network(member: Member) -> Verdict:
    """Take part in the test, and judge it on the first node; return the verdict.

    Raises:
        UnknownName: the first node's name does not resolve here.
        OSError: the first node cannot be reached.
    """
    if member.rank == 0:
        listener = listen(member.port, min(member.nodes, 1024))
        threading.Thread(target=_judge, args=(member, listener), daemon=True).start()
    line = Line(reach(member.host, member.port, Waiting(member.meet_seconds)))
    own = listen()
    ring, collective = Ring(member.rank, own), Collective(member.rank)
    try:
        line.send([member.token, member.rank, node_name(), own.getsockname()[1], time.time()])
        # The judge waits as long as this node, plus the time of each step.
        return _obey(line, ring, collective, member)
    finally:
        collective.close()
        ring.close()
        line.close()


def _obey(line: Line, ring: Ring, collective: Collective, member: Member) -> Verdict:
    actions: dict[str, Callable[[Any], Any]] = {
        "connect": lambda peers: ring.connect([Peer(*peer) for peer in peers], CONNECT_SECONDS),
        "reduce": ring.all_reduce,
        "links": lambda size: list(ring.receiving_rates(size).items()),
        "listen": collective.listen,
        "collective": collective.run,
    }
    while True:
        order, value = line.receive(member.meet_seconds + 6 * STEP_SECONDS)
        if order == "verdict":
            return Verdict(**value)
        try:
            line.send(["done", actions[order](value)])
        except (OSError, KeyError, ValueError) as error:
            line.send(["failed", str(error)])


def _judge(member: Member, listener: socket.socket) -> None:
    lines: dict[int, Line] = {}
    with listener, contextlib.suppress(OSError):
        clocks: dict[int, float] = {}
        peers = _gather(member, listener, lines, clocks)
        verdict = asdict(_run_test(member, lines, peers))
        middle = statistics.median_low(clocks.values())
        verdict["skews"] = [clocks.get(rank, middle) - middle for rank in range(member.nodes)]
        # This process ends as soon as rank 0 has its verdict, so the others get theirs first.
        for rank in sorted(lines, reverse=True):
            with contextlib.suppress(OSError):
                lines[rank].send(["verdict", verdict])
    for line in lines.values():
        # The side that closes first keeps the port busy for a while, so let the other side close first.
        with contextlib.suppress(OSError):
            line.receive(1.0)
        line.close()


def _gather(
    member: Member, listener: socket.socket, lines: dict[int, Line], clocks: dict[int, float]
) -> dict[int, Peer]:
    peers: dict[int, Peer] = {}
    waiting = Waiting(member.meet_seconds)
    while len(peers) < member.nodes and (left := waiting.left) > 0:
        missing = [rank for rank in range(member.nodes) if rank not in peers]
        waiting.report(f"node{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:16]))} at port {member.port}")
        listener.settimeout(min(left, 5.0))
        with contextlib.suppress(OSError, ValueError, TypeError):
            link, (address, *_) = listener.accept()
            line = Line(link)
            token, rank, name, port, now = line.receive(CONNECT_SECONDS)
            if token != member.token:  # of an earlier attempt
                line.close()
                continue
            peers[rank] = Peer(name, member.host if rank == 0 else plain(address), port)
            lines[rank], clocks[rank] = line, now - time.time()
    return peers


def _run_test(member: Member, lines: dict[int, Line], peers: dict[int, Peer]) -> Verdict:
    names = [peers[rank].name if rank in peers else f"node {rank}" for rank in range(member.nodes)]
    missing = [rank for rank in range(member.nodes) if rank not in peers]
    if missing:
        unhealthy = missing
        if len(missing) == member.nodes - 1:
            unhealthy = [0] if member.nodes > 2 else _in_turn(member, [0, 1])
        return Verdict(names=names, missing=missing, unhealthy=unhealthy)
    failed = _ask(lines, "connect", [peers[rank] for rank in range(member.nodes)])
    broken = {rank: value for rank, (state, value) in failed.items() if state == "failed" or value}
    if broken:
        return _unconnected(member, names, broken)
    size = MEBIBYTE
    answers = _ask(lines, "reduce", size)
    if not _first_error(answers):
        # Connections warm up first; then the bandwidth is measured with a size that takes TARGET_SECONDS.
        size = max(size, min(LARGEST, int(size * TARGET_SECONDS / _slowest(answers))))
        _ask(lines, "reduce", size)
        answers = _ask(lines, "reduce", size)
    if trouble := _first_error(answers):
        return Verdict(names=names, trouble=trouble)
    gbs = bus_bandwidth(size, _slowest(answers), member.nodes)
    if member.collective and member.floor:
        return _by_collective(member, names, lines, peers)
    if member.collective or gbs >= member.floor:
        return Verdict(gbs, size, names)
    rates = {
        (source, rank): rate
        for rank, (_, links) in _ask(lines, "links", size).items()
        if isinstance(links, list)
        for source, rate in links
    }
    return Verdict(gbs, size, names, unhealthy=suspects(rates, member.nodes, member.floor))


def _by_collective(member: Member, names: list[str], lines: dict[int, Line], peers: dict[int, Peer]) -> Verdict:
    """Run an all-reduce with torch.distributed over all nodes; if it fails or is slow, between neighbours."""
    answers = _collective(lines, peers, [list(range(member.nodes))])
    broken = {rank: value for rank, value in answers.items() if "error" in value}
    if not broken:
        size, over = int(answers[0]["size"]), str(answers[0]["over"])
        gbs = bus_bandwidth(size, float(answers[0]["seconds"]), member.nodes)
        if gbs >= member.floor:
            return Verdict(gbs, size, names, over=over)
        return Verdict(gbs, size, names, unhealthy=_slow_nodes(member, lines, peers), over=over)
    own = [rank for rank, value in broken.items() if value["own"]]
    first = (own or [rank for rank, value in broken.items()])[0]
    trouble = f"{names[first]}: {broken[first]['error']}"
    if own:
        return Verdict(names=names, unhealthy=own if len(own) < member.nodes else [], trouble=trouble)
    if member.nodes == 2:
        return Verdict(names=names, unhealthy=_in_turn(member, [0, 1]), trouble=trouble)
    return Verdict(names=names, unhealthy=_slow_nodes(member, lines, peers, 0.0), trouble=trouble)


def _slow_nodes(
    member: Member, lines: dict[int, Line], peers: dict[int, Peer], floor: float | None = None
) -> list[int]:
    """Return the nodes that are slow with both neighbours; with ``floor`` 0, those that fail with both."""
    if member.nodes == 2:
        return []
    rates: dict[tuple[int, int], float] = {}
    for pairs in pairs_of_ring(member.nodes):
        answers = _collective(lines, peers, [list(pair) for pair in pairs])
        for one, other in pairs:
            told = answers[one]
            works = "error" not in told and "error" not in answers[other]
            rate = bus_bandwidth(int(told["size"]), float(told["seconds"]), 2) if works else 0.0
            rates[one, other] = rates[other, one] = rate
    return suspects(rates, member.nodes, member.floor if floor is None else floor)


def _collective(lines: dict[int, Line], peers: dict[int, Peer], groups: list[list[int]]) -> dict[int, dict[str, Any]]:
    """Run an all-reduce in every group at the same time; return the answers of all nodes."""
    ports = {rank: value for rank, (state, value) in _ask(lines, "listen", None).items() if state == "done"}
    told = [Group(ranks, peers[ranks[0]].address, ports.get(ranks[0], 0)) for ranks in groups]
    answers = _ask(lines, "collective", told)
    gone = {rank: {"error": str(value), "own": True} for rank, (state, value) in answers.items() if state != "done"}
    return {rank: gone.get(rank) or answers[rank][1] for ranks in groups for rank in ranks}


def _unconnected(member: Member, names: list[str], broken: dict[int, Any]) -> Verdict:
    rates = dict.fromkeys(((a, (a + d) % member.nodes) for a in range(member.nodes) for d in (1, 2)), 1.0)
    for rank, distances in broken.items():
        for distance in distances if isinstance(distances, list) else (1, 2):
            rates[rank, (rank + distance) % member.nodes] = 0.0
    if member.nodes == 2:
        rates = {link: rate for link, rate in rates.items() if link[0] != link[1]}
    cut = [f"{names[a]} to {names[b]}" for (a, b), rate in rates.items() if not rate]
    involved = sorted({rank for link, rate in rates.items() if not rate for rank in link})
    unhealthy = suspects(rates, member.nodes, 0.0) or _in_turn(member, involved)
    return Verdict(names=names, unhealthy=unhealthy, trouble=f"no connection from {', '.join(cut[:4])}")


def _in_turn(member: Member, ranks: list[int]) -> list[int]:
    """Return the last of ``ranks`` in the first attempt, then the one before: rank 0 runs the batch script."""
    return [ranks[-1 - member.attempt % len(ranks)]]


def _ask(lines: dict[int, Line], order: str, value: object) -> dict[int, tuple[str, Any]]:
    """Send all nodes an order and return their answers; a lost connection counts as failed."""
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.send([order, value])
    answers: dict[int, tuple[str, Any]] = {}
    for rank, line in lines.items():
        try:
            state, answer = line.receive(2 * STEP_SECONDS)
            answers[rank] = (state, answer)
        except (OSError, ValueError, TypeError) as error:
            answers[rank] = ("failed", str(error))
    return answers


def _first_error(answers: dict[int, tuple[str, Any]]) -> str:
    return next((str(value) for state, value in answers.values() if state != "done"), "")


def _slowest(answers: dict[int, tuple[str, Any]]) -> float:
    return max(float(value) for _, value in answers.values())
