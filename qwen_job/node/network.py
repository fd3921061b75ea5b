"""Do the nodes of a job reach each other, and how fast? All of them ask at once; the first node judges.

Each connects to the first node, which names the others to it, has them connect in a ring, and has the ring add
numbers up (ring.py). For GPUs with a floor, torch.distributed then does the same over NCCL (collective.py). Where
that fails or is slower than the site's floor, links are looked at one by one, so that the node at fault is named: the
requeued job leaves it out.
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

# Nodes start at different times: one of them may have to fetch an image first.
MEET_SECONDS = 300.0
LARGEST, TARGET_SECONDS = 16 * MEBIBYTE, 0.2


@dataclass(frozen=True)
class Place:
    """This node among ``nodes``; the first one listens at ``host``:``port``. ``floor``: GB/s, 0 for none.

    The floor is TCP's to reach, or torch.distributed's where ``collective`` is set: that of a job on GPUs.
    Where one of several must be at fault and none can be told, each is left out in turn, ``attempt`` by attempt.
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
    """What the first node says to all.

    ``gbs`` was measured with ``size`` bytes ``over`` TCP, NCCL or Gloo. ``missing``: ranks that never came;
    ``unhealthy``: all at fault, those too. ``skews``: each clock against the middle one, in seconds.
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


def check_network(place: Place) -> Verdict:
    """Take part in the test, as its judge too on the first node, and return the verdict.

    Raises:
        UnknownName: the first node's name does not resolve here.
        OSError: the first node cannot be reached.
    """
    if place.rank == 0:
        listener = listen(place.port, min(place.nodes, 1024))
        threading.Thread(target=_judge, args=(place, listener), daemon=True).start()
    line = Line(reach(place.host, place.port, Waiting(place.meet_seconds)))
    own = listen()
    ring, collective = Ring(place.rank, own), Collective(place.rank)
    try:
        line.say([place.token, place.rank, node_name(), own.getsockname()[1], time.time()])
        # The judge waits as long as we do, and for every step after that.
        return _obey(line, ring, collective, place)
    finally:
        collective.close()
        ring.close()
        line.close()


def _obey(line: Line, ring: Ring, collective: Collective, place: Place) -> Verdict:
    deeds: dict[str, Callable[[Any], Any]] = {
        "connect": lambda peers: ring.connect([Peer(*peer) for peer in peers], CONNECT_SECONDS),
        "reduce": ring.all_reduce,
        "links": lambda size: list(ring.receiving_rates(size).items()),
        "listen": collective.listen,
        "collective": collective.run,
    }
    while True:
        order, value = line.hear(place.meet_seconds + 6 * STEP_SECONDS)
        if order == "verdict":
            return Verdict(**value)
        try:
            line.say(["done", deeds[order](value)])
        except (OSError, KeyError, ValueError) as error:
            line.say(["failed", str(error)])


def _judge(place: Place, listener: socket.socket) -> None:
    lines: dict[int, Line] = {}
    with listener, contextlib.suppress(OSError):
        clocks: dict[int, float] = {}
        peers = _gather(place, listener, lines, clocks)
        verdict = asdict(_try(place, lines, peers))
        middle = statistics.median_low(clocks.values())
        verdict["skews"] = [clocks.get(rank, middle) - middle for rank in range(place.nodes)]
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.say(["verdict", verdict])
    for line in lines.values():
        # Who closes first keeps the port busy for a while: let it be the other side.
        with contextlib.suppress(OSError):
            line.hear(1.0)
        line.close()


def _gather(place: Place, listener: socket.socket, lines: dict[int, Line], clocks: dict[int, float]) -> dict[int, Peer]:
    peers: dict[int, Peer] = {}
    waiting = Waiting(place.meet_seconds)
    while len(peers) < place.nodes and (left := waiting.left) > 0:
        missing = [rank for rank in range(place.nodes) if rank not in peers]
        waiting.report(f"node{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:16]))} at port {place.port}")
        listener.settimeout(min(left, 5.0))
        with contextlib.suppress(OSError, ValueError, TypeError):
            link, (address, *_) = listener.accept()
            line = Line(link)
            token, rank, name, port, now = line.hear(CONNECT_SECONDS)
            if token != place.token:  # of an earlier try
                line.close()
                continue
            peers[rank] = Peer(name, place.host if rank == 0 else plain(address), port)
            lines[rank], clocks[rank] = line, now - time.time()
    return peers


def _try(place: Place, lines: dict[int, Line], peers: dict[int, Peer]) -> Verdict:
    names = [peers[rank].name if rank in peers else f"node {rank}" for rank in range(place.nodes)]
    missing = [rank for rank in range(place.nodes) if rank not in peers]
    if missing:
        unhealthy = missing
        if len(missing) == place.nodes - 1:
            unhealthy = [0] if place.nodes > 2 else _in_turn(place, [0, 1])
        return Verdict(names=names, missing=missing, unhealthy=unhealthy)
    failed = _ask(lines, "connect", [peers[rank] for rank in range(place.nodes)])
    broken = {rank: value for rank, (state, value) in failed.items() if state == "failed" or value}
    if broken:
        return _unconnected(place, names, broken)
    size = MEBIBYTE
    answers = _ask(lines, "reduce", size)
    if not _trouble(answers):
        # The speed is measured with as much as takes a moment; first of all, connections warm up.
        size = max(size, min(LARGEST, int(size * TARGET_SECONDS / _slowest(answers))))
        _ask(lines, "reduce", size)
        answers = _ask(lines, "reduce", size)
    if trouble := _trouble(answers):
        return Verdict(names=names, trouble=trouble)
    gbs = bus_bandwidth(size, _slowest(answers), place.nodes)
    if place.collective and place.floor:
        return _by_collective(place, names, lines, peers)
    if place.collective or gbs >= place.floor:
        return Verdict(gbs, size, names)
    rates = {
        (source, rank): rate
        for rank, (_, links) in _ask(lines, "links", size).items()
        if isinstance(links, list)
        for source, rate in links
    }
    return Verdict(gbs, size, names, unhealthy=suspects(rates, place.nodes, place.floor))


def _by_collective(place: Place, names: list[str], lines: dict[int, Line], peers: dict[int, Peer]) -> Verdict:
    """Have torch.distributed add up over all nodes; where that does not do, over every two neighbours."""
    answers = _collective(lines, peers, [list(range(place.nodes))])
    broken = {rank: value for rank, value in answers.items() if "error" in value}
    if not broken:
        size, over = int(answers[0]["size"]), str(answers[0]["over"])
        gbs = bus_bandwidth(size, float(answers[0]["seconds"]), place.nodes)
        if gbs >= place.floor:
            return Verdict(gbs, size, names, over=over)
        return Verdict(gbs, size, names, unhealthy=_slow_nodes(place, lines, peers), over=over)
    own = [rank for rank, value in broken.items() if value["own"]]
    first = (own or [rank for rank, value in broken.items()])[0]
    trouble = f"{names[first]}: {broken[first]['error']}"
    if own:
        return Verdict(names=names, unhealthy=own if len(own) < place.nodes else [], trouble=trouble)
    if place.nodes == 2:
        return Verdict(names=names, unhealthy=_in_turn(place, [0, 1]), trouble=trouble)
    return Verdict(names=names, unhealthy=_slow_nodes(place, lines, peers, 0.0), trouble=trouble)


def _slow_nodes(place: Place, lines: dict[int, Line], peers: dict[int, Peer], floor: float | None = None) -> list[int]:
    """Return the nodes that are slow with both their neighbours; ``floor`` 0: with whom it does not work at all."""
    if place.nodes == 2:
        return []
    rates: dict[tuple[int, int], float] = {}
    for pairs in pairs_of_ring(place.nodes):
        answers = _collective(lines, peers, [list(pair) for pair in pairs])
        for one, other in pairs:
            told = answers[one]
            works = "error" not in told and "error" not in answers[other]
            rate = bus_bandwidth(int(told["size"]), float(told["seconds"]), 2) if works else 0.0
            rates[one, other] = rates[other, one] = rate
    return suspects(rates, place.nodes, place.floor if floor is None else floor)


def _collective(lines: dict[int, Line], peers: dict[int, Peer], groups: list[list[int]]) -> dict[int, dict[str, Any]]:
    """Have every group add up, all at once; return what the nodes of all groups say."""
    ports = {rank: value for rank, (state, value) in _ask(lines, "listen", None).items() if state == "done"}
    told = [Group(ranks, peers[ranks[0]].address, ports.get(ranks[0], 0)) for ranks in groups]
    answers = _ask(lines, "collective", told)
    gone = {rank: {"error": str(value), "own": True} for rank, (state, value) in answers.items() if state != "done"}
    return {rank: gone.get(rank) or answers[rank][1] for ranks in groups for rank in ranks}


def _unconnected(place: Place, names: list[str], broken: dict[int, Any]) -> Verdict:
    rates = dict.fromkeys(((a, (a + d) % place.nodes) for a in range(place.nodes) for d in (1, 2)), 1.0)
    for rank, distances in broken.items():
        for distance in distances if isinstance(distances, list) else (1, 2):
            rates[rank, (rank + distance) % place.nodes] = 0.0
    if place.nodes == 2:
        rates = {link: rate for link, rate in rates.items() if link[0] != link[1]}
    cut = [f"{names[a]} to {names[b]}" for (a, b), rate in rates.items() if not rate]
    involved = sorted({rank for link, rate in rates.items() if not rate for rank in link})
    unhealthy = suspects(rates, place.nodes, 0.0) or _in_turn(place, involved)
    return Verdict(names=names, unhealthy=unhealthy, trouble=f"no connection from {', '.join(cut[:4])}")


def _in_turn(place: Place, ranks: list[int]) -> list[int]:
    """Return the last of ``ranks`` at the first attempt, then the one before: the first runs the batch script."""
    return [ranks[-1 - place.attempt % len(ranks)]]


def _ask(lines: dict[int, Line], order: str, value: object) -> dict[int, tuple[str, Any]]:
    """Give all nodes an order and return their answers; one that is gone has failed."""
    for line in lines.values():
        with contextlib.suppress(OSError):
            line.say([order, value])
    answers: dict[int, tuple[str, Any]] = {}
    for rank, line in lines.items():
        try:
            state, answer = line.hear(2 * STEP_SECONDS)
            answers[rank] = (state, answer)
        except (OSError, ValueError, TypeError) as error:
            answers[rank] = ("failed", str(error))
    return answers


def _trouble(answers: dict[int, tuple[str, Any]]) -> str:
    return next((str(value) for state, value in answers.values() if state != "done"), "")


def _slowest(answers: dict[int, tuple[str, Any]]) -> float:
    return max(float(value) for _, value in answers.values())
