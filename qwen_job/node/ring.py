"""An all-reduce between nodes over TCP, without torch: which nodes a node can reach, and how fast.

The ring algorithm: every node sends to the next one; n - 1 steps add up the chunks, n - 1 more distribute the sums.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# An operation on a working connection takes far less.
STEP_SECONDS = 60.0
MEBIBYTE = 2**20


class Peer(NamedTuple):
    """A node of the ring; it listens at ``address``:``port``."""

    name: str
    address: str
    port: int


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """Return the bus bandwidth of an all-reduce of ``size`` bytes between ``ranks``, in GB/s (1e9 bytes).

    size / seconds * 2 (n - 1) / n: the load of one link, independent of n (NCCL tests, doc/PERFORMANCE.md).
    """
    return size / seconds * 2 * (ranks - 1) / ranks / 1e9


def suspects(rates: Mapping[tuple[int, int], float], nodes: int, floor: float) -> list[int]:
    """Return the nodes whose outgoing or incoming links are all below ``floor``.

    ``rates``: (from, to) -> GB/s, 0.0 for a broken link. Empty if no node can be singled out, for example between two
    nodes or if half of the nodes are slow.
    """
    slow = {link for link, rate in rates.items() if rate <= floor}
    found = []
    for node in range(nodes):
        sides = [[link for link in rates if link[side] == node] for side in (0, 1)]
        if any(links and slow.issuperset(links) for links in sides):
            found.append(node)
    return found if 2 * len(found) < nodes else []


class Ring:
    """This node's connections among ``peers``: to the next one and to the one after that."""

    def __init__(self, rank: int, listener: socket.socket) -> None:
        self.rank = rank
        self.peers: Sequence[Peer] = ()
        self._listener = listener
        self._to: dict[int, socket.socket] = {}
        self._from: dict[int, socket.socket] = {}

    def connect(self, peers: Sequence[Peer], seconds: float) -> list[int]:
        """Connect to the following nodes and accept the preceding ones; return the distances that failed."""
        self.peers = peers
        distances = [1, 2] if len(peers) > 2 else [1]
        taking = threading.Thread(target=self._accept, args=(len(distances), time.monotonic() + seconds))
        taking.start()
        failed = []
        for distance in distances:
            peer = peers[(self.rank + distance) % len(peers)]
            try:
                link = socket.create_connection((peer.address, peer.port), timeout=seconds / len(distances))
                link.settimeout(STEP_SECONDS)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link.sendall(bytes([distance]))
                self._to[distance] = link
            except OSError:
                failed.append(distance)
        taking.join()
        return failed

    def _accept(self, count: int, deadline: float) -> None:
        while len(self._from) < count and (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(left)
            with contextlib.suppress(OSError, IndexError):
                link, _ = self._listener.accept()
                link.settimeout(STEP_SECONDS)
                self._from[link.recv(1)[0]] = link

    def all_reduce(self, size: int) -> float:
        """Add up ``size`` bytes of numbers over all nodes and return the seconds.

        Raises:
            OSError: a link failed.
            ValueError: the sum is wrong.
        """
        import numpy as np

        count = len(self.peers)
        length = max(1, size // 4 // count)
        numbers = np.arange(count * length, dtype=np.float32) % 251
        data, other = numbers + np.float32(self.rank), np.empty(length, np.float32)
        chunks = data.reshape(count, length)
        began = time.perf_counter()
        for step in range(count - 1):
            mine, theirs = (self.rank - step) % count, (self.rank - step - 1) % count
            self._exchange(1, chunks[mine].data.cast("B"), other.data.cast("B"))
            chunks[theirs] += other
        for step in range(count - 1):
            mine, theirs = (self.rank + 1 - step) % count, (self.rank - step) % count
            self._exchange(1, chunks[mine].data.cast("B"), chunks[theirs].data.cast("B"))
        seconds = time.perf_counter() - began
        if not np.array_equal(data, numbers * count + count * (count - 1) / 2):
            raise ValueError("the sum of the all-reduce is wrong")
        return seconds

    def receiving_rates(self, size: int) -> dict[int, float]:
        """Return rank -> GB/s for each node that sends ``size`` bytes to this one; all nodes send at the same time."""
        rates = {}
        for distance in self._to:
            began = time.perf_counter()
            self._exchange(distance, memoryview(bytes(size)), memoryview(bytearray(size)))
            rates[(self.rank - distance) % len(self.peers)] = size / (time.perf_counter() - began) / 1e9
        return rates

    def _exchange(self, distance: int, data: memoryview, into: memoryview) -> None:
        """Send to the node ``distance`` ahead while receiving from the node ``distance`` behind."""
        failed: list[OSError] = []

        def send() -> None:
            try:
                self._to[distance].sendall(data)
            except OSError as error:
                failed.append(error)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            while into:
                count = self._from[distance].recv_into(into)
                if not count:
                    raise ConnectionError("the preceding node closed its connection")
                into = into[count:]
        finally:
            sending.join()
        if failed:
            raise failed[0]

    def close(self) -> None:
        """Close all connections."""
        for link in (*self._to.values(), *self._from.values(), self._listener):
            link.close()


class Line:
    """Messages over a connection: one JSON value per line."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._file = link.makefile("rwb")

    def send(self, value: object) -> None:
        """Send one message."""
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def receive(self, seconds: float) -> Any:
        """Wait for one message.

        Raises:
            OSError: none arrived in time, or it is not JSON.
        """
        self._link.settimeout(max(0.1, seconds))
        try:
            return json.loads(self._file.readline())
        except ValueError:
            raise ConnectionError("the connection was closed") from None

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._link.close()
