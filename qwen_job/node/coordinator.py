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
    both         alive              every second (liveness.py)

A connection that ends is a launcher that is gone, and so is one on which nothing has arrived for eight seconds. Where
something starts it again (``rejoin``: a new pod), the others stay, and the next attempt starts once a launcher with its
number has said hello; without node 0 nobody coordinates, and the others connect to its successor. Elsewhere all end,
and the outer way follows (a spare node, a requeue). A line of another G than the current one has no effect.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_job.errors import Hang, RendezvousFailed, Retryable, StoppedAndSaved
from qwen_job.node.liveness import ALIVE, SILENCE_SECONDS, Beats, Silence, prepare
from qwen_job.sockets import Waiting

_LINE_BYTES = 65536
# Workers that have not ended by then, after 30 s in which they may do so by themselves and a kill, never will.
_ENDED_SECONDS = 60.0
# Imports from a cold network file system take minutes.
_READY_SECONDS = 900.0
# Pauses before the first, second, ... restart in a row without a newer checkpoint.
_PAUSES = (0.0, 1.0, 5.0, 15.0)


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


def restartable(exits: list[Exit], *, without_leaving: bool = False) -> bool:
    """Return whether a restart may help: not after a final exit code, nor after a stop request.

    ``without_leaving``: others take the place of the nodes with a stop request, for which all ranks have saved.
    """
    if any(one.fault or (one.leaving and not without_leaving) for one in exits):
        return False
    allowed = {0, Retryable.exit_code, Hang.exit_code}
    if any(one.leaving for one in exits):
        allowed.add(StoppedAndSaved.exit_code)
    return all(code < 0 or code in allowed for one in exits for code in one.codes)


@dataclass
class _Peer:
    connection: socket.socket
    node: int = -1
    host: str = ""
    buffer: bytes = b""


class Coordinator:
    """The agreement of one job; ``listening`` is its socket, ``say`` prints a line.

    ``restarting`` hears why each restart in place came. ``lost`` hears the number of each node whose launcher did not
    end in order: "gone" if its connection ended, "silent" if nothing arrived any more. ``rejoin``: how many seconds the
    other nodes wait for one that is lost; 0: all end.
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
        lost: Callable[[int, str], None] = lambda _, __: None,
        rejoin: float = 0.0,
    ) -> None:
        self.messages = self.beats = 0
        self._rejoin = rejoin
        self._restarting, self._note_lost = restarting, lost
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
        self._silence = Silence()
        self._beats = Beats(lambda: [peer.connection for peer in list(self._peers.values())])
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
            self._look_for_silence()
            self._look_at_the_clock()
        self._beats.end()
        self._listening.close()
        for peer in self._peers.values():
            peer.connection.close()

    def _accept(self) -> None:
        # All that wait: of many nodes that come at once, the last shall not wait for its first sign of life.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                prepare(connection)
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
                self._silence.heard(peer.node)
                if message["what"] == ALIVE:
                    self.beats += 1
                    continue
                self.messages += 1
                self._take(peer, message["what"], message)
            except (ValueError, KeyError, TypeError):
                self._drop(peer)  # not a launcher
                return

    def _look_for_silence(self) -> None:
        silent = self._silence.look(self._peers)
        if not silent or self._phase == "over":
            return
        # With all others silent, this node is the one that is cut off.
        cut_off = len(silent) == self._nodes - 1 > 1
        for node in silent:
            if not cut_off:
                self._note_lost(node, "silent")
            peer = self._peers[node]
            self._drop(peer, f"no sign of life for {SILENCE_SECONDS:.0f} s from node {node} ({peer.host})")

    def _drop(self, peer: _Peer, why: str = "") -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(peer.connection)
        peer.connection.close()
        if self._peers.get(peer.node) is peer:
            if self._phase not in ("over", "meeting"):
                if not why:
                    self._note_lost(peer.node, "gone")
                self._lose(peer, why or f"the launcher of node {peer.node} ({peer.host}) is gone")
            else:
                del self._peers[peer.node]

    def _lose(self, peer: _Peer, why: str) -> None:
        """Let the other nodes wait for the one that is gone; end on all of them where nothing brings it back."""
        del self._peers[peer.node]
        self._ready.pop(peer.node, None)
        if not self._rejoin or not peer.node:
            self._end(Retryable.exit_code, why)
        elif self._phase == "running":
            self._over({"why": why, "code": -signal.SIGKILL, "grace": 0.0})
        elif self._phase == "ending":
            self._decide_if_ended()
        elif self._budget.take() is None:
            self._end(Retryable.exit_code, self._fruitless(why))
        else:
            self._enter("preparing")
            self._waiting = Waiting(self._rejoin, self._say)
            self._say(f"{why}: {self._absence()}")

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
            self._fault(peer, str(message["why"]))

    def _meet(self, peer: _Peer, message: dict[str, Any]) -> None:
        node, known = int(message["node"]), self._peers.get(int(message["node"]))
        refused = ""
        if message["job"] != self._job:
            refused = f"another job ({self._job}) uses this port"
        elif message["nodes"] != self._nodes or not 0 <= node < self._nodes:
            refused = f"it was started as node {node} of {message['nodes']}, and node 0 expects {self._nodes} nodes"
        elif self._phase != "meeting" and self._rejoin and node:
            self._replace(known)
            refused = "the job has ended" if self._phase == "over" else ""
        elif known is not None or self._phase != "meeting":
            other = f" by {known.host}" if known else ""
            refused = f"node {node} is already taken{other}: each node needs its own --node_rank"
        if refused:
            _send(peer.connection, {"what": "refused", "why": refused})
            self._drop(peer)
            return
        peer.node, peer.host = node, str(message["host"])
        self._silence.heard(node)
        self._peers[node] = peer
        if self._phase == "preparing":
            _send(peer.connection, {"what": "prepare", "G": self._generation, "pause": 0.0})
        elif self._phase == "ending":
            self._ended.setdefault(node, Exit([]))
        elif len(self._peers) == self._nodes:
            self._enter("preparing")
            self._start_if_ready()

    def _replace(self, known: _Peer | None) -> None:
        """Let go of a launcher whose successor has come before its end was noticed."""
        if known is not None:
            _send(known.connection, {"what": "refused", "why": f"another launcher has become node {known.node}"})
            self._drop(known)

    def _fault(self, peer: _Peer, why: str) -> None:
        if self._rejoin and peer.node:
            _dismiss(peer)
            self._lose(peer, why)
        else:
            self._end(Retryable.exit_code, why)

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
        if any(node not in self._ended for node in self._peers):
            return
        exits = [self._ended[node] for node in sorted(self._ended)]
        leaving = [self._peers[node] for node in sorted(self._peers) if self._ended[node].leaving]
        others_stay = bool(self._rejoin and leaving and not any(peer.node == 0 for peer in leaving))
        if all(code == 0 for one in exits for code in one.codes) and self._phase == "running":
            self._end(0, "")
        elif not self._budget.most or not restartable(exits, without_leaving=others_stay):
            # A rank that ended by itself has given the reason.
            self._end(Retryable.exit_code, self._why if self._killed else "")
        elif (spent := self._budget.take()) is None:
            self._end(Retryable.exit_code, self._fruitless(self._why))
        else:
            for peer in leaving:
                self._why = f"node {peer.node} ({peer.host}) was asked to stop"
                _dismiss(peer)
                del self._peers[peer.node]
            self._restart(spent)

    def _fruitless(self, why: str) -> str:
        return f"{why}; {self._budget.most} restarts in place (retry.in_place) reached no newer checkpoint"

    def _restart(self, spent: int) -> None:
        pause = _PAUSES[min(spent, len(_PAUSES)) - 1]
        self._generation += 1
        self._enter("preparing")
        self._waiting = Waiting(self._rejoin, self._say)
        self._say(
            f"{self._why}: restarting all ranks in place ({spent} of {self._budget.most} without a newer checkpoint)"
            + (f" after {pause:.0f} s" if pause else "")
            + (f"; {self._absence()}" if self._absent() else "")
        )
        self._tell(what="prepare", G=self._generation, pause=pause)
        self._restarting(self._why)

    def _absent(self) -> list[str]:
        return [str(node) for node in range(self._nodes) if node not in self._peers]

    def _absence(self) -> str:
        return f"waiting up to {self._rejoin:.0f} s for node {', '.join(self._absent()[:16])} to come back"

    def _look_at_the_clock(self) -> None:
        passed = time.monotonic() - self._since
        absent = self._absent()
        if self._phase == "preparing" and absent:
            self._waiting.report(f"node {', '.join(absent[:16])} to come back")
            if passed > self._rejoin:
                message = f"node {', '.join(absent[:16])} did not come back within {self._rejoin:.0f} s"
                self._end(RendezvousFailed.exit_code, f"{self._why or 'before the first step'}; {message}")
        elif self._phase == "meeting" and absent:
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


def _dismiss(peer: _Peer) -> None:
    """Let one node end, for which the others wait; its exit code is that of a node without failed ranks."""
    _send(peer.connection, {"what": "end", "code": Retryable.exit_code, "why": ""})
