"""An all-reduce between nodes as in training: torch.distributed with NCCL on GPUs, else with Gloo.

Each node runs it in a separate process, because one that waits in NCCL for a lost node can only be killed. One
GPU per node takes part.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from qwen_job.errors import EnvironmentFault
from qwen_job.node.ring import MEBIBYTE
from qwen_job.sockets import choose_interface, listen

# For importing torch from cold storage, connecting, setting up NCCL and measuring; the judge waits longer.
COLLECTIVE_SECONDS = 100.0
# REPEATS operations are timed, with a size that takes about TARGET_SECONDS each.
REPEATS, TARGET_SECONDS = 5, 0.1
LARGEST = {"nccl": 256 * MEBIBYTE, "gloo": 16 * MEBIBYTE}
LIBRARIES = {"nccl": "NCCL", "gloo": "Gloo"}


class Group(NamedTuple):
    """Nodes that share an all-reduce; the first of ``ranks`` listens at ``address``:``port``."""

    ranks: list[int]
    address: str
    port: int


def pairs_of_ring(nodes: int) -> list[list[tuple[int, int]]]:
    """Return rounds of pairs: every link of the ring once, every node at most once per round."""
    links = [(node, (node + 1) % nodes) for node in range(nodes if nodes > 2 else 1)]
    last = [links.pop()] if nodes % 2 and nodes > 2 else []
    return [found for found in (links[::2], links[1::2], last) if found]


class Collective:
    """This node's part: listen, in case it is the first of a group, and run the process."""

    def __init__(self, rank: int, seconds: float = COLLECTIVE_SECONDS) -> None:
        self.rank = rank
        self.seconds = seconds
        self._listener: socket.socket | None = None

    def listen(self, _: object = None) -> int:
        """Listen for the next group that this node may be the first of; return the port."""
        self.close()
        self._listener = listen()
        return int(self._listener.getsockname()[1])

    def run(self, groups: Sequence[Sequence[Any]]) -> dict[str, Any] | None:
        """Take part in the group that contains this node; None if none does.

        Returns the ``seconds`` of one all-reduce of ``size`` bytes and the library (``over``), the same on all nodes of
        the group; or ``error`` and whether it is this node's ``own``, before any other node was involved.
        """
        try:
            for group in (Group(*one) for one in groups):
                if self.rank in group.ranks:
                    return self._process(group)
            return None
        finally:
            self.close()

    def _process(self, group: Group) -> dict[str, Any]:
        first = group.ranks[0] == self.rank and self._listener is not None
        listener = self._listener.fileno() if first and self._listener else -1
        mine = [group.ranks.index(self.rank), len(group.ranks), group.address, group.port, listener, self.seconds]
        command = [sys.executable, "-m", __name__, json.dumps(mine)]
        kept = [listener] if first else []
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            pass_fds=kept,
        ) as process:
            try:
                # A little longer than its own timeout, to receive its last message.
                said, complaints = process.communicate(timeout=self.seconds + 3)
            except subprocess.TimeoutExpired:
                process.kill()
                said, complaints = process.communicate()
        return _read(said, complaints, process.returncode, self.seconds)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _read(said: str, complaints: str, code: int, seconds: float) -> dict[str, Any]:
    """Return the process's result, or the stage it reached and why it ended."""
    stage = "start"
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict):
                if "stage" not in told:
                    return told
                stage = told["stage"]
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        why = f"not finished within {seconds:g} s"
    else:
        lines = [line for line in complaints.splitlines() if line.strip()]
        why = f"exit code {code}{': ' + lines[-1].strip() if lines else ''}"
    return {"error": f"{stage}: {why}", "own": stage == "start"}


def take_part(rank: int, ranks: int, address: str, port: int, listener: int, seconds: float) -> dict[str, Any]:
    """Run the all-reduce in this process; return what :meth:`Collective.run` returns."""
    own = True
    try:
        import torch
        import torch.distributed as dist

        backend = "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        torch.ones(1, device=device).item()
        own = False
        choose_interface(address)
        _say(stage="connecting to the other nodes")
        store = _meet(backend, device, rank, ranks, address, port, listener, seconds)
        _say(stage=f"all-reduce over {LIBRARIES[backend]}")
        size, slowest = _measure(backend, device, rank, ranks)
        _part(store, rank, ranks)
        return {"seconds": slowest, "size": size, "over": LIBRARIES[backend]}
    except (EnvironmentFault, ImportError, OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"error": lines[0], "own": own}


def _meet(
    backend: str, device: Any, rank: int, ranks: int, address: str, port: int, listener: int, seconds: float
) -> Any:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    patience = timedelta(seconds=seconds)
    given = listener if listener >= 0 else None
    store = TCPStore(address, port, ranks, rank == 0, patience, master_listen_fd=given)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=patience,
        device_id=device if backend == "nccl" else None,
    )
    return store


def _part(store: Any, rank: int, ranks: int) -> None:
    """Wait until all have their result; the process with the store leaves last, so that no message is lost."""
    with contextlib.suppress(RuntimeError):
        store.add("measured", 1)
        while store.add("measured", 0) < ranks:
            time.sleep(0.02)
    if rank == 0:
        time.sleep(0.2)


def _measure(backend: str, device: Any, rank: int, ranks: int) -> tuple[int, float]:
    """Return bytes and seconds of one all-reduce on the slowest node, the same on all nodes."""
    import torch
    import torch.distributed as dist

    expected = torch.arange(MEBIBYTE // 4, device=device, dtype=torch.float32) % 251
    data = expected + rank
    dist.all_reduce(data)
    if not torch.equal(data, expected * ranks + ranks * (ranks - 1) / 2):
        raise ValueError("the sum of the all-reduce is wrong")
    # The first warms up the connections; the second gives the size that takes TARGET_SECONDS.
    once = [_timed(device, MEBIBYTE, 1) for _ in range(2)][-1]
    size = max(MEBIBYTE, min(LARGEST[backend], int(MEBIBYTE * TARGET_SECONDS / once) // 4 * 4))
    _timed(device, size, 1)
    return size, _timed(device, size, REPEATS)


def _timed(device: Any, size: int, repeats: int) -> float:
    import torch
    import torch.distributed as dist

    data = torch.zeros(size // 4, device=device)
    dist.all_reduce(data[:1])
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(data)
    if device.type == "cuda":
        torch.cuda.synchronize()
    slowest = torch.tensor([(time.perf_counter() - began) / repeats], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest.item())


def _say(**values: object) -> None:
    print(json.dumps(values), flush=True)


def _main(words: str) -> None:
    rank, ranks, address, port, listener, seconds = json.loads(words)
    # The default action of SIGALRM ends the process even inside NCCL, and without a parent.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    _say(**take_part(rank, ranks, address, port, listener, seconds))
    # Destroying the process group could wait for a lost node.
    os._exit(0)


if __name__ == "__main__":
    _main(sys.argv[1])
