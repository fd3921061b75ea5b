"""Signs of life between the launchers: a machine that loses power or its network sends nothing, not even an end.

TCP alone notices that after minutes, and a frozen launcher never. So each side of a launcher's connection sends a
line every ``BEAT_SECONDS`` from a thread that does nothing else, and takes the other side for lost after
``SILENCE_SECONDS`` without any line. That bound is a compromise: a lost node should be replaced within 20 s, and these
must do no harm: a break of the network of up to 6 s (TCP sends a lost line again after 0.2, 0.6, 1.4, 3.0, 6.2 and
12.6 s: RFC 6298 from Linux's shortest timeout on), a virtual machine that is paused for a moment, and a load under
which a thread waits for seconds to run.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 8.0
# A process that did not run for longer has heard nothing meanwhile, whatever was sent.
_OWN_PAUSE_SECONDS = 2.0
ALIVE = "alive"
_LINE = b'{"what": "alive"}\n'


class Beats:
    """Sends a sign of life to each of ``connections()``, until ``end``; one that takes none is found silent itself."""

    def __init__(self, connections: Callable[[], Iterable[socket.socket]]) -> None:
        self._connections = connections
        self._over = threading.Event()
        threading.Thread(target=self._send, name="beats", daemon=True).start()

    def end(self) -> None:
        """Send no more."""
        self._over.set()

    def _send(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            for connection in list(self._connections()):
                # Without waiting: a peer whose buffers are full has read nothing for long.
                with contextlib.suppress(OSError):
                    connection.send(_LINE, socket.MSG_DONTWAIT)


class Silence:
    """How long each peer, known by its node, has sent nothing; pauses of this process itself do not count."""

    def __init__(self) -> None:
        self._heard: dict[int, float] = {}
        self._looked = time.monotonic()

    def heard(self, node: int) -> None:
        """Note that the peer has sent something just now."""
        self._heard[node] = time.monotonic()

    def look(self, nodes: Iterable[int]) -> list[int]:
        """Return which of the peers have been silent for too long; call it often, after reading what has arrived."""
        now = time.monotonic()
        pause, self._looked = now - self._looked, now
        if pause > _OWN_PAUSE_SECONDS:
            self._heard = {node: when + pause for node, when in self._heard.items()}
        return [node for node in sorted(nodes) if now - self._heard.setdefault(node, now) > SILENCE_SECONDS]


def prepare(connection: socket.socket) -> None:
    """Send short lines at once."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
