"""Agrees with the launchers of all nodes on when an attempt starts, that it is over, and whether another one follows.

It runs in a thread of node 0's launcher and talks to every launcher, also its own, in lines of JSON over one
connection each, on the job's rendezvous port. ``G`` counts the attempts of this launch from 0:

    launcher     hello ID NODE NNODES HOST
    launcher     ready G            its processes can be started; node 0 adds the port of the ranks' store
    coordinator  start G            all nodes are ready
    launcher     over G CODE WHY    a rank failed; the coordinator passes it on to all
    launcher     ended G EXITS      none of the ranks here is left
    coordinator  prepare G+1        restart in place: after a pause, all check their nodes
    coordinator  end CODE WHY       no further attempt: each launcher exits with the code of a rank here, or CODE

A connection that ends is a launcher that is gone: then nobody restarts in place, and the outer way does (a requeue, a
new pod). A line about another G than the current one has no effect.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_job.errors import Hang, RendezvousFailed, Retryable
from qwen_job.sockets import Waiting

_LINE_BYTES = 65536
# A launcher that answers later than this after an attempt is frozen: its workers had 30 s to end.
_ENDED_SECONDS = 60.0
# Imports from a cold network file system take minutes.
_READY_SECONDS = 900.0
# Pauses before the first, second, ... restart in a row without a newer checkpoint.
_PAUSES = (0.0, 1.0, 5.0, 15.0)
_KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 9))


@dataclass
class Exit:
    """How the ranks of one node ended: ``codes`` of those that nobody stopped, as in subprocess.

    ``leaving``: the node had a stop request. ``fault``: the node failed its checks.
    """

    codes: list[int]
    why: str = ""
    leaving: bool = False
    fault: str = ""


@dataclass
class Budget:
    """How many restarts in place are left: ``most`` in a row without a newer checkpoint.

    ``newest`` returns the step of the newest checkpoint.
    """

    most: int
    newest: Callable[[], int]
    spent: int = 0
    step: int = field(default=-2)

    def take(self) -> int | None:
        """Return which restart without a newer checkpoint this is, from 1; None if none is left."""
        step = self.newest()
        if step > self.step:
            self.step, self.spent = step, 0
        self.spent += 1
        return self.spent if self.spent <= self.most else None


def restartable(exits: list[Exit]) -> bool:
    """Return whether a restart on the same nodes may help: not after a final exit code, nor after a stop request."""
    if any(one.leaving or one.fault for one in exits):
        return False
    allowed = (0, Retryable.exit_code, Hang.exit_code)
    return all(code < 0 or code in allowed for one in exits for code in one.codes)


@dataclass
class _Peer:
    connection: socket.socket
    node: int = -1
    host: str = ""
    buffer: bytes = b""


class Coordinator:
    """The agreement of one job; ``listening`` is its socket, ``say`` prints a line.

    ``restarting`` hears why each restart in place came.
    """

    def __init__(
        self,
        listening: socket.socket,
        job: str,
        nodes: int,
        timeout: float,
        budget: Budget,
        say: Callable[[str], None],
        restarting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.messages = 0
        self._restarting = restarting
        self._listening, self._job, self._nodes, self._timeout = listening, job, nodes, timeout
        self._budget, self._say = budget, say
        self._launch = uuid.uuid4().hex
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._generation = 0
        self._ready: dict[int, int] = {}
        self._ended: dict[int, Exit] = {}
        self._why, self._killed = "", False
        self._phase, self._since = "meeting", time.monotonic()
        self._waiting = Waiting(timeout, say)
        self._thread = threading.Thread(target=self._serve, name="coordinator", daemon=True)

    def begin(self) -> None:
        """Serve from now on, in a thread."""
        self._thread.start()

    def finish(self, seconds: float = 5.0) -> None:
        """Wait until the end has been told to all launchers."""
        self._thread.join(seconds)

    def _serve(self) -> None:
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ, None)
        while self._phase != "over":
            for key, _ in self._selector.select(0.5):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            self._look_at_the_clock()
        self._listening.close()
        for peer in self._peers.values():
            peer.connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listening.accept()
            keep_alive(connection)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or len(peer.buffer) > _LINE_BYTES:
            self._drop(peer)
            return
        *lines, peer.buffer = (peer.buffer + data).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
                self.messages += 1
                self._take(peer, message["what"], message)
            except (ValueError, KeyError, TypeError):
                self._drop(peer)  # not a launcher
                return

    def _drop(self, peer: _Peer) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(peer.connection)
        peer.connection.close()
        if self._peers.get(peer.node) is peer:
            del self._peers[peer.node]
            if self._phase != "over" and self._phase != "meeting":
                self._end(Retryable.exit_code, f"the launcher of node {peer.node} ({peer.host}) is gone")

    def _take(self, peer: _Peer, what: str, message: dict[str, Any]) -> None:
        if what == "hello":
            self._meet(peer, message)
        elif peer.node < 0 or message["G"] != self._generation:
            return
        elif what == "ready":
            self._ready[peer.node] = int(message["port"])
            self._start_if_ready()
        elif what == "over" and self._phase == "running":
            self._over(message)
        elif what == "ended":
            codes = [int(code) for code in message["codes"]]
            self._ended[peer.node] = Exit(codes, str(message["why"]), bool(message["leaving"]))
            self._decide_if_ended()
        elif what == "fault":
            self._end(Retryable.exit_code, str(message["why"]))

    def _meet(self, peer: _Peer, message: dict[str, Any]) -> None:
        node, known = int(message["node"]), self._peers.get(int(message["node"]))
        refused = ""
        if message["job"] != self._job:
            refused = f"another job ({self._job}) uses this port"
        elif message["nodes"] != self._nodes or not 0 <= node < self._nodes:
            refused = f"it was started as node {node} of {message['nodes']}, and node 0 expects {self._nodes} nodes"
        elif known is not None or self._phase != "meeting":
            other = f" by {known.host}" if known else ""
            refused = f"node {node} is already taken{other}: each node needs its own --node_rank"
        if refused:
            _send(peer.connection, {"what": "refused", "why": refused})
            self._drop(peer)
            return
        peer.node, peer.host = node, str(message["host"])
        self._peers[node] = peer
        if len(self._peers) == self._nodes:
            self._enter("preparing")
            self._start_if_ready()

    def _start_if_ready(self) -> None:
        if self._phase == "preparing" and len(self._ready) == self._nodes:
            self._enter("running")
            port, self._ready, self._ended = self._ready[0], {}, {}
            self._tell(what="start", G=self._generation, port=port, launch=self._launch, after=self._why)

    def _over(self, message: dict[str, Any]) -> None:
        self._enter("ending")
        self._why, self._killed = str(message["why"]), int(message["code"]) < 0
        self._tell(what="over", G=self._generation, code=int(message["code"]), grace=float(message["grace"]))

    def _decide_if_ended(self) -> None:
        if len(self._ended) < self._nodes:
            return
        exits = [self._ended[node] for node in range(self._nodes)]
        if all(code == 0 for one in exits for code in one.codes) and self._phase == "running":
            self._end(0, "")
        elif not self._budget.most or not restartable(exits):
            # A rank that ended by itself has given the reason.
            self._end(Retryable.exit_code, self._why if self._killed else "")
        elif (spent := self._budget.take()) is None:
            self._end(Retryable.exit_code, f"{self._why}; {self._budget.most} restarts in place (retry.in_place) "
                      "reached no newer checkpoint")  # fmt: skip
        else:
            self._restart(spent)

    def _restart(self, spent: int) -> None:
        pause = _PAUSES[min(spent, len(_PAUSES)) - 1]
        self._generation += 1
        self._enter("preparing")
        self._say(
            f"{self._why}: restarting all ranks in place ({spent} of {self._budget.most} without a newer checkpoint)"
            + (f" after {pause:.0f} s" if pause else "")
        )
        self._tell(what="prepare", G=self._generation, pause=pause)
        self._restarting(self._why)

    def _look_at_the_clock(self) -> None:
        passed = time.monotonic() - self._since
        absent = [str(node) for node in range(self._nodes) if node not in self._peers]
        if self._phase == "meeting" and absent:
            self._waiting.report(f"{len(absent)} of {self._nodes} nodes: {', '.join(absent[:16])}")
            if passed > self._timeout:
                self._end(
                    RendezvousFailed.exit_code,
                    f"{len(absent)} of {self._nodes} nodes did not connect within {self._timeout:.0f} s (missing: "
                    f"{', '.join(absent[:16])}); check that all nodes were started and that each has its own "
                    "--node_rank",
                )
        elif (self._phase == "ending" and passed > _ENDED_SECONDS) or (
            self._phase == "preparing" and passed > _READY_SECONDS
        ):
            heard = self._ended if self._phase == "ending" else self._ready
            silent = [
                f"node {peer.node} ({peer.host})" for node, peer in sorted(self._peers.items()) if node not in heard
            ]
            self._end(Retryable.exit_code, f"no answer for {passed:.0f} s from {', '.join(silent[:8])}")

    def _enter(self, phase: str) -> None:
        self._phase, self._since = phase, time.monotonic()

    def _end(self, code: int, why: str) -> None:
        self._tell(what="end", code=code, why=why)
        self._enter("over")

    def _tell(self, **message: Any) -> None:
        for peer in self._peers.values():
            self.messages += 1
            _send(peer.connection, message)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send one line; a launcher that is gone is noticed where its connection is read."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def keep_alive(connection: socket.socket) -> None:
    """Notice a machine that has disappeared, after two minutes; a shorter break of the network does no harm."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)
