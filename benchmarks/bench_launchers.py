"""How long many launchers take to meet, to hear of a dead rank, and to start the next attempt, on one machine.

    python benchmarks/bench_launchers.py --nodes 256

Every launcher is a process with the real coordinator's protocol; its ranks are stand-ins that cost nothing, so what is
measured is the agreement alone. Prints seconds and messages.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwen_job.node.coordinator import Budget, Coordinator
from qwen_job.node.generations import Connection, Generations, Place
from qwen_job.node.processes import Cold, Ended
from qwen_job.node.relay import Relay
from qwen_job.sockets import Waiting, listen, reach

RESTARTS = 5


class StandIn(Cold):
    """Ranks that are only numbers; the one of the last node dies a while after each start but the last."""

    def __init__(self, report: int, *, mortal: bool) -> None:
        super().__init__([])
        self._report, self._mortal, self._starts = report, mortal, 0
        self._dies_at = float("inf")

    def start(self, environment: Mapping[str, str]) -> int:
        os.write(self._report, b"started %d %.6f\n" % (self._starts, time.time()))
        self._starts += 1
        self._dies_at = time.monotonic() + 1.0 if self._mortal or self._starts > RESTARTS else float("inf")
        return 2**30  # no process has this number

    def start_store(self) -> tuple[int, int]:
        return 2**30 + 1, 1

    def ended(self) -> list[Ended]:
        if time.monotonic() < self._dies_at:
            return []
        self._dies_at = float("inf")
        last = self._starts > RESTARTS
        if not last:
            os.write(self._report, b"died %d %.6f\n" % (self._starts - 1, time.time()))
        return [Ended(2**30, 0 if last else -signal.SIGKILL)]


class Survivor(StandIn):
    """A rank that also ends when its launcher ends the attempt."""

    generations: Generations | None = None

    def ended(self) -> list[Ended]:
        found = super().ended()
        if not found and self.generations is not None and self.generations.stopping:
            return [Ended(2**30, -signal.SIGKILL)]
        return found


def launcher(node: int, nodes: int, port: int, report: int) -> int:
    """Be one launcher, to the end of the job."""
    mortal = node == nodes - 1
    connected = reach("localhost", port, Waiting(120))
    place = Place(node, nodes, 1, "localhost")
    starter = Survivor(report, mortal=mortal)
    runs = Generations(place, Connection(connected, "bench", place), starter, Relay(1), lambda: None, lambda _: None)
    starter.generations = runs
    return runs.run()


def main() -> int:
    """Start the launchers and print the figures; 1 if one did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=256)
    nodes = parser.parse_args().nodes
    listening = listen(backlog=4096)
    port = int(listening.getsockname()[1])
    reader, writer = os.pipe()
    all_forked, forking = os.pipe()
    children = []
    for node in range(nodes):
        if not (pid := os.fork()):
            listening.close()
            os.close(forking)
            os.read(all_forked, 1)  # the end of the file
            os._exit(launcher(node, nodes, port, writer))
        children.append(pid)
    os.close(writer)
    newest = iter(range(10**9))
    coordinator = Coordinator(listening, "bench", nodes, 300, Budget(RESTARTS, lambda: next(newest)), lambda _: None)
    coordinator.begin()
    began = time.time()
    os.close(forking)
    with os.fdopen(reader) as stream:
        lines = [line.split() for line in stream]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    coordinator.finish()
    started = [
        [float(at) for what, which, at in lines if what == "started" and int(which) == n] for n in range(RESTARTS + 1)
    ]
    died = [float(at) for what, _, at in lines if what == "died"]
    again = [max(started[number + 1]) - at for number, at in enumerate(died)]
    print(f"{nodes} launchers, {RESTARTS} restarts, host {socket.gethostname()}, load {os.getloadavg()[0]:.1f}")
    print(f"all processes forked to all ranks started: {max(started[0]) - began:.2f} s")
    print(f"death of a rank to all ranks started again: {', '.join(f'{one:.3f}' for one in again)} s")
    print(f"median {statistics.median(again):.3f} s; messages per node: {coordinator.messages / nodes:.1f}", end="")
    print(f", and {coordinator.beats / nodes:.0f} signs of life in {time.time() - began:.0f} s")
    return 0 if set(codes) == {0} else 1


if __name__ == "__main__":
    sys.exit(main())
