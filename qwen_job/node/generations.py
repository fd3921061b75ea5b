"""The attempts of one node: starts its ranks when all nodes are ready, watches them, and ends them when one failed.

All nodes do each step together, as node 0's coordinator says (coordinator.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from qwen_job.errors import Hang, NodeUnhealthy, QwenJobError, RendezvousFailed, Retryable, StoppedAndSaved
from qwen_job.node.liveness import ALIVE, SILENCE_SECONDS, Beats, Silence, prepare
from qwen_job.node.processes import Cold, kill_group
from qwen_job.node.relay import Relay
from qwen_job.run.launched import AFTER, LAUNCH, RESTARTS

# Cold workers are looked at; warm ones report themselves.
_POLL_SECONDS, _IDLE_SECONDS = 0.1, 1.0
_FIRST_SIGN_SECONDS = 60.0
_LINE_BYTES = 65536
# In a row; what kills each of them is no accident.
_MOST_STORES_LOST, _STORE_PAUSE_SECONDS = 3, 1.0
# How long other ranks may take to end by themselves after one has failed: they save, or report the same failure. One
# that was killed has nothing to report; one that saw a hang, or lost a data worker, has when it ends.
_GRACE_SECONDS = 30.0
_GRACE_BY_CODE = {Retryable.exit_code: 1.0, Hang.exit_code: 3.0}


class Place(NamedTuple):
    """Which node this is, and where its ranks meet the others."""

    node: int
    nodes: int
    ranks: int
    address: str


class Failure(NamedTuple):
    """A rank that failed by itself; ``code`` as in subprocess."""

    local_rank: int
    pid: int
    code: int
    when: float


class Connection:
    """Lines of JSON to and from the coordinator; ``lost`` is set when there will be no more."""

    def __init__(self, connected: socket.socket, job: str, place: Place) -> None:
        self.socket = connected
        self.lost = False
        self._buffer = b""
        self._met, self._began = False, time.monotonic()
        self._silence = Silence()
        prepare(connected)
        connected.settimeout(None)
        self._beats = Beats(lambda: [connected])
        self.tell("hello", job=job, node=place.node, nodes=place.nodes, host=socket.gethostname())

    def tell(self, what: str, **message: Any) -> None:
        """Send a line; a coordinator that is gone is noticed by ``hear``."""
        try:
            self.socket.sendall(json.dumps({"what": what, **message}).encode() + b"\n")
        except OSError:
            self.lost = True

    def hear(self) -> list[dict[str, Any]]:
        """Return the lines that have arrived, without the signs of life."""
        lines: list[bytes] = []
        try:
            # The socket itself stays blocking, for the thread that sends.
            while data := self.socket.recv(_LINE_BYTES, socket.MSG_DONTWAIT):
                self._met = True
                self._silence.heard(0)
                *new, self._buffer = (self._buffer + data).split(b"\n")
                lines += new
            self.lost = True
        except BlockingIOError:
            pass
        except OSError:
            self.lost = True
        return [message for line in lines if (message := json.loads(line))["what"] != ALIVE]

    def is_silent(self) -> bool:
        """Return whether the coordinator has given no sign of life for too long; call it after ``hear``.

        Before its first one it may be busy with many other nodes.
        """
        silent = bool(self._silence.look([0]))
        return silent and (self._met or time.monotonic() - self._began > _FIRST_SIGN_SECONDS)

    def close(self) -> None:
        """Leave the coordinator."""
        self._beats.end()
        self.socket.close()


class Generations:
    """Runs the attempts of this node until the coordinator ends them.

    ``check`` checks the node before a restart; it raises QwenJobError for a fault. ``lost`` hears the number of a
    node (0, which coordinates) that is lost, and how: as in Coordinator.
    """

    def __init__(
        self,
        place: Place,
        connection: Connection,
        starter: Cold,
        relay: Relay,
        check: Callable[[], None],
        say: Callable[[str], None],
        lost: Callable[[int, str], None] = lambda _, __: None,
    ) -> None:
        self._note_lost = lost
        self._place, self._connection, self._starter = place, connection, starter
        self._relay, self._check, self._say = relay, check, say
        self._generation, self._why = 0, ""
        self._running: dict[int, int] = {}
        self._store: int | None = None
        self._stores_lost = 0
        self._failures: list[Failure] = []
        self.stopping = False
        self._asked: set[int] = set()
        self._kill_at: float | None = None
        self._phase = "waiting"
        self._not_before = 0.0
        relay.pids = lambda: list(self._running)

    def run(self, *, rejoin: bool = False) -> int | None:
        """Return the node's exit code; with ``rejoin``, None if node 0 is gone and its successor is worth the wait.

        Raises:
            RendezvousFailed: the nodes did not meet, or the ranks' store cannot be started.
            NodeUnhealthy: the node failed its check before a restart.
        """
        try:
            while True:
                for message in self._connection.hear():
                    if (code := self._take(message)) is not None:
                        return code
                if self._connection.lost or self._connection.is_silent():
                    self._miss_node_0()
                    code = self._leave(Retryable.exit_code)
                    waits = rejoin and self._place.node and not self._relay.used and code >= Retryable.exit_code
                    return None if waits else code
                self._watch()
                self._prepare()
                self._wait()
        finally:
            self._kill()

    def _miss_node_0(self) -> None:
        gone = self._connection.lost
        silence = f"no sign of life for {SILENCE_SECONDS:.0f} s from node 0 ({self._place.address})"
        self._say("the launcher of node 0 is gone" if gone else silence)
        self._note_lost(0, "gone" if gone else "silent")

    def _take(self, message: dict[str, Any]) -> int | None:
        what = message["what"]
        if what == "start":
            self._start(message)
        elif what == "over" and self._phase == "running":
            self._stop(message["code"], message["grace"])
        elif what == "prepare":
            self._generation, self._phase = message["G"], "waiting"
            self._not_before = time.monotonic() + message["pause"]
            self._failures = []
        elif what == "refused":
            raise RendezvousFailed(f"node {self._place.node} ({socket.gethostname()}): {message['why']}")
        elif what == "end":
            return self._end(message["code"], message["why"])
        return None

    def _end(self, code: int, why: str) -> int:
        if why and (code == RendezvousFailed.exit_code):
            raise RendezvousFailed(why)
        if why and self._place.node == 0:
            self._say(why)
        return self._leave(code)

    def _leave(self, code: int) -> int:
        """Return the code of the rank of this node that failed first; ``code`` if none did."""
        self._kill()
        if not self._failures:
            return StoppedAndSaved.exit_code if code and self._relay.used else code
        return exit_code([(failure.when, failure.code) for failure in self._failures])

    def _prepare(self) -> None:
        """Report this node as ready for the next attempt, once it is."""
        if self._phase != "waiting" or time.monotonic() < self._not_before or not self._starter.is_ready():
            return
        port = 0
        if self._generation:
            if self._relay.used:
                self._connection.tell("fault", G=self._generation, why="a stop request arrived between two attempts")
                self._phase = "leaving"
                return
            try:
                self._check()
            except QwenJobError as error:
                self._connection.tell("fault", G=self._generation, why=f"{socket.gethostname()}: {error}")
                raise NodeUnhealthy(f"{socket.gethostname()} failed its check before a restart: {error}") from None
        elif self._starter.refusal:
            self._say(f"{socket.gethostname()}: every attempt starts new processes: {self._starter.refusal}")
        if self._place.node == 0:
            try:
                self._store, port = self._starter.start_store()
            except OSError as error:
                self._try_store_again(error)
                return
        self._phase = "ready"
        self._connection.tell("ready", G=self._generation, port=port)

    def _try_store_again(self, error: OSError) -> None:
        """Prepare once more after a moment: the process that forks was killed, and another one takes its place."""
        self._stores_lost += 1
        if self._stores_lost > _MOST_STORES_LOST:
            raise RendezvousFailed(f"{socket.gethostname()} cannot start the ranks' store: {error}") from None
        self._not_before = time.monotonic() + _STORE_PAUSE_SECONDS

    def _start(self, message: dict[str, Any]) -> None:
        self._phase, self.stopping, self._kill_at = "running", False, None
        self._stores_lost = 0
        self._relay.starting()
        if self._place.node == 0 and self._store is None:
            self._lose_store()
            return
        shared = {
            "MASTER_ADDR": self._place.address,
            "MASTER_PORT": str(message["port"]),
            "WORLD_SIZE": str(self._place.nodes * self._place.ranks),
            "LOCAL_WORLD_SIZE": str(self._place.ranks),
            "GROUP_RANK": str(self._place.node),
            "GROUP_WORLD_SIZE": str(self._place.nodes),
            # The store is the launcher's, not rank 0's.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self._generation),
            LAUNCH: message["launch"],
            RESTARTS: str(self._generation),
            AFTER: message["after"],
        }
        for number in range(self._place.ranks):
            rank = self._place.node * self._place.ranks + number
            try:
                pid = self._starter.start({**shared, "RANK": str(rank), "LOCAL_RANK": str(number)})
            except OSError as error:
                self._fail(Failure(number, 0, -signal.SIGKILL, time.time()), str(error))
                break
            self._running[pid] = number
        self._relay.started()

    def _watch(self) -> None:
        """Note the processes that have ended; the first failure ends the attempt on all nodes."""
        # The ranks' store goes last: its end is no reason where all went.
        for pid, code in sorted(self._starter.ended(), key=lambda one: one.pid == self._store):
            if pid == self._store:
                self._store = None
                if self._phase == "running":
                    self._lose_store()
            if (number := self._running.pop(pid, None)) is None:
                continue
            if code and not self.stopping:
                self._fail(failure := Failure(number, pid, code, time.time()), describe(failure))
            elif code and code not in self._asked:
                self._failures.append(Failure(number, pid, code, time.time()))
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            self._kill_at += 1.0
            for pid in self._running:
                kill_group(pid)
        if self._phase == "running" and not self._running:
            self._finish()

    def _lose_store(self) -> None:
        self._fail(None, f"the process of the ranks' store on {socket.gethostname()} was killed")

    def _fail(self, failure: Failure | None, why: str) -> None:
        code = -signal.SIGKILL
        if failure is not None:
            self._failures.append(failure)
            code = failure.code
            if code < 0 and self._place.node:  # node 0 hears it from the coordinator
                self._say(why)
        grace = 0.0 if code < 0 else _GRACE_BY_CODE.get(code, _GRACE_SECONDS)
        self._why = why
        self._connection.tell("over", G=self._generation, code=code, why=why, grace=grace)
        self._stop(code, grace)

    def _stop(self, code: int, grace: float) -> None:
        """End the ranks that are left, now or after ``grace`` seconds in which they may end by themselves.

        ``code``: of the rank that failed first.
        """
        if self.stopping:
            return
        self.stopping = True
        self._asked = {-signal.SIGKILL, -signal.SIGTERM}
        if code != StoppedAndSaved.exit_code:
            self._asked.add(StoppedAndSaved.exit_code)  # the answer to our TERM
        self._kill_at = time.monotonic() + grace
        for pid in self._running if grace else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _finish(self) -> None:
        self._phase = "ended"
        self._kill_store()
        codes = [failure.code for failure in self._failures]
        self._connection.tell(
            "ended", G=self._generation, codes=codes, why=self._why, leaving=self._relay.used and bool(codes)
        )

    def _kill_store(self) -> None:
        if self._store is not None:
            kill_group(self._store)

    def _kill(self) -> None:
        for pid in self._running:
            kill_group(pid)
        self._kill_store()
        deadline = time.monotonic() + 5
        while self._running and time.monotonic() < deadline:
            for pid, code in self._starter.ended():
                number = self._running.pop(pid, None)
                if number is not None and code not in (0, -signal.SIGKILL):
                    self._failures.append(Failure(number, pid, code, time.time()))
            time.sleep(0.01)

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for channel in (self._connection.socket, self._starter.channel):
                if channel is not None:
                    selector.register(channel, selectors.EVENT_READ)
            busy = self._starter.channel is None or self._kill_at is not None or self._phase == "waiting"
            selector.select(_POLL_SECONDS if busy else _IDLE_SECONDS)


def describe(failure: Failure) -> str:
    """Return how a rank ended, for people."""
    who = f"a worker on {socket.gethostname()} (local rank {failure.local_rank}, process {failure.pid})"
    if failure.code >= 0:
        return f"{who} ended with exit code {failure.code}"
    try:
        name = signal.Signals(-failure.code).name
    except ValueError:
        name = f"signal {-failure.code}"
    hint = ", often by the kernel when host memory is full" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}"


def exit_code(failures: Sequence[tuple[float, int]]) -> int:
    """Return the code of the rank that failed first, from (unix time, code as in subprocess).

    Ranks that only lost a peer, and those that the launcher then stopped, do not show the cause.
    """
    collateral = (Retryable.exit_code, -signal.SIGTERM, -signal.SIGABRT)
    # Within one second, a rank with an exit code goes before one that was killed.
    code = min((code in collateral, int(when), code < 0, code) for when, code in failures)[-1]
    return 128 - code if code < 0 else code


def say(text: str) -> None:
    """Print a line for the job's log."""
    print(f"qwen-job: {text}", file=sys.stderr, flush=True)
