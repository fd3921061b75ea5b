"""Copies of states in memory between nodes, over a plain socket.

- ``Server``: gives this node's states to whoever knows the run's token
- ``fetch``: take one of them, each file checked while it arrives

A request is one line of JSON; the answer is the state's manifest in one line, then its files in the manifest's order.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import shutil
import socket
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from qwen_job import strict_json
from qwen_job.run import states as memory
from qwen_job.run.states import State
from qwen_job.sockets import address_toward, listen

_BLOCK = 2**20
_LINE = 64 * 2**20
_SECONDS = 60.0


class Address(NamedTuple):
    """Where a node serves its states."""

    host: str
    port: int


class Readable(Protocol):
    """What bytes come from."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most ``size`` bytes, none at the end."""
        ...


class Server:
    """Serves what ``states`` returns until the process ends; ``toward``: a host that shows which address others see."""

    def __init__(self, states: Callable[[], list[State]], token: str, toward: str) -> None:
        self._states, self._token = states, token
        self._listener = listen()
        self.address = Address(address_toward(toward) or socket.gethostname(), self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="states", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # Whoever asks sees a connection that ends early.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), connection:
            connection.settimeout(_SECONDS)
            with connection.makefile("rb") as lines:
                asked = strict_json.loads(lines.readline(4096))
            if not hmac.compare_digest(str(asked["token"]), self._token):
                return
            wanted = (asked["node"], asked["step"])
            state = next((state for state in self._states() if (state.node, state.step) == wanted), None)
            if state is None:
                return
            connection.sendall(memory.manifest_text(state).encode())
            for name in sorted(state.files):
                with (state.path / name).open("rb") as file:
                    connection.sendfile(file)


def fetch(address: Address, token: str, node: int, step: int, home: Path, keep: int | None = None) -> str:
    """Copy the state of ``node`` at ``step`` from another node into ``home``; returns why that failed, or "".

    ``keep``: the only other state of ``node`` that is needed; None keeps them all.
    """
    path = memory.state_path(home, node, step)
    part = memory.aside(path)
    try:
        if keep is None:
            shutil.rmtree(part, ignore_errors=True)
        else:
            memory.make_room(path, keep)
        with socket.create_connection(address, timeout=_SECONDS) as connection:
            connection.sendall(json.dumps({"token": token, "node": node, "step": step}).encode() + b"\n")
            with connection.makefile("rb", buffering=_BLOCK) as stream:
                line = stream.readline(_LINE)
                if not line:
                    return f"{address.host} no longer has it"
                state = memory.parse_manifest(line, path)
                for name, entry in sorted(state.files.items()):
                    _receive(stream, part / name, entry)
        memory.publish(state)
    except (OSError, ValueError) as error:
        shutil.rmtree(part, ignore_errors=True)
        return f"{address.host}: {error}"
    return ""


def adopt(state: State, home: Path) -> str:
    """Link a state that is in another folder of this host into ``home``; returns why that failed, or ""."""
    path = memory.state_path(home, state.node, state.step)
    part = memory.aside(path)
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name in state.files:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).hardlink_to(state.path / name)
        memory.publish(state._replace(path=path))
    except OSError as error:
        return str(error)
    return ""


def _receive(stream: Readable, path: Path, entry: memory.Sum) -> None:
    left, crc = entry.size, 0
    with memory.written(path) as file:
        while left:
            block = stream.read(min(left, _BLOCK))
            if not block:
                raise ValueError(f"the connection ended in {path.name}")
            file.write(block)
            crc = zlib.crc32(block, crc)
            left -= len(block)
    if crc != entry.crc32:
        raise ValueError(f"{path.name} does not match its checksum")
