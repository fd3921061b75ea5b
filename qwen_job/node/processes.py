"""The worker processes of one node: started, watched, and ended with everything that they have started.

``Cold`` starts each as a new Python. ``Warm`` has them forked by one process that has imported the training stack
(qwen_job/train/template.py), so that a restart does not pay for the imports. Each worker leads a process group, which
is killed as soon as the worker has ended: its data workers hold copies of its sockets, and the other ranks would wait
for those.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_job.run.launched import CHANNEL, ROLE, STORE, TEMPLATE, die_with_parent, system_calls
from qwen_job.run.signals import STOP_SIGNAL

_LINE_BYTES = 65536
# Longer than imports from a cold network file system take.
_STORE_SECONDS = 600.0


class Ended(NamedTuple):
    """A process that has ended; ``code`` as in subprocess: -n for signal n."""

    pid: int
    code: int


class Cold:
    """Starts ``command`` (the arguments of ``python -m qwen_job.train``) as new processes.

    The methods raise OSError if a process could not be started.
    """

    # A socket that has something to read when a worker has ended; None if only ``ended`` knows.
    channel: socket.socket | None = None
    # Why workers are started cold although they could be warm.
    refusal = ""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def is_ready(self) -> bool:
        """Return whether workers can be started now."""
        return True

    def start(self, environment: Mapping[str, str]) -> int:
        """Start one worker, with ``environment`` besides this process's, and return its process ID."""
        return self._spawn(environment)

    def start_store(self) -> tuple[int, int]:
        """Start the store in which the ranks meet; return its process ID and port."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = self.start_role(STORE, theirs)
            ours.settimeout(_STORE_SECONDS)
            line = ours.makefile("rb").readline(_LINE_BYTES)
        if not line:
            raise ChildProcessError("the store of the ranks could not be started")
        return pid, int(json.loads(line)["port"])

    def start_role(self, role: str, channel: socket.socket) -> int:
        """Start a process that is no rank, and talks to the other end of ``channel``."""
        return self._spawn({ROLE: role, CHANNEL: str(channel.fileno())}, channel.fileno())

    def ended(self) -> list[Ended]:
        """Return the processes that have ended since the last call, their groups killed."""
        found = []
        for pid, process in list(self._started.items()):
            # The group is killed before its leader is reaped: until then nothing else can get its number.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                kill_group(pid)
                del self._started[pid]
                found.append(Ended(pid, process.wait()))
        return found

    def _spawn(self, environment: Mapping[str, str], *channels: int) -> int:
        launcher = os.getpid()
        system_calls()
        # Blocked in the worker until it has a handler, which unblocks it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {STOP_SIGNAL})
        try:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "qwen_job.train", *self._command],
                env={**os.environ, **environment},
                pass_fds=channels,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(launcher),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._started[process.pid] = process
        return process.pid


class Warm(Cold):
    """Has workers forked from one process that has imported what they need; a lost one is replaced."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(command)
        self._forked: set[int] = set()
        self._lost: list[Ended] = []
        self._begin()

    def is_ready(self) -> bool:
        self._read()
        return self._ready

    def start(self, environment: Mapping[str, str]) -> int:
        if self.refusal:
            return super().start(environment)
        self._ask({"role": "", "environment": dict(environment)})
        return self._answer("forked")

    def start_store(self) -> tuple[int, int]:
        if self.refusal:
            return super().start_store()
        self._ask({"role": STORE, "environment": {}})
        return self._answer("forked"), self._answer("port")

    def ended(self) -> list[Ended]:
        self._read()
        found, self._lost = self._lost, []
        mine = [one for one in super().ended() if one.pid != self._template]
        return [*found, *mine]

    def _begin(self) -> None:
        self._ready, self._buffer = False, b""
        self._answers: list[dict[str, Any]] = []
        self.channel, theirs = socket.socketpair()
        with theirs:
            self._template = self.start_role(TEMPLATE, theirs)

    def _ask(self, request: Mapping[str, Any]) -> None:
        assert self.channel is not None
        self.channel.setblocking(True)
        with contextlib.suppress(OSError):  # noticed by the answer that does not come
            self.channel.sendall(json.dumps(request).encode() + b"\n")

    def _answer(self, name: str) -> int:
        """Wait for the number that the process answers with.

        Raises:
            ChildProcessError: the process ended instead.
        """
        template = self._template
        while True:
            for answer in self._answers:
                if name in answer:
                    self._answers.remove(answer)
                    return int(answer[name])
            self._read(wait=True)
            if self._template != template:
                raise ChildProcessError("the process that starts the workers has ended")

    def _read(self, *, wait: bool = False) -> None:
        """Take what the process has written; with ``wait``, wait until it has written something."""
        while self.channel is not None:
            self.channel.setblocking(wait)
            try:
                data = self.channel.recv(_LINE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._replace()
                return
            wait = False
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self._ready, self.refusal = True, str(message["ready"])
        elif "ended" in message:
            self._forked.discard(message["ended"])
            self._lost.append(Ended(message["ended"], message["code"]))
        else:
            if "forked" in message:
                self._forked.add(message["forked"])
            self._answers.append(message)

    def _replace(self) -> None:
        """Start another one, unless it was lost in its imports; the kernel has killed the workers that it forked."""
        assert self.channel is not None
        self.channel.close()
        self.channel = None
        if self.refusal:
            return
        for pid in self._forked:
            kill_group(pid)
            self._lost.append(Ended(pid, -signal.SIGKILL))
        self._forked.clear()
        super().ended()
        if self._ready:
            self._begin()
        else:
            # Another one would end like it: new processes show what is wrong.
            self._ready, self.refusal = True, "the process that imports the training stack ended while it did so"


def kill_group(pid: int) -> None:
    """Kill a process and what it has started, which is in its process group."""
    # One that was forked a moment ago may not lead its group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
