"""How the ranks of a run find each other, and wait for one of them without the timeout of a collective.

- ``Place``: which rank this process is, from the launcher's environment
- ``meet``: check in at the store; who is missing after a minute is named
- ``join``: the process group, gloo on a CPU and NCCL on GPUs
- ``tell``, ``once``: one rank works, the others poll the store for its answer
- ``speak_once``: one rank prints what several have to report
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen_job import errors
from qwen_job.errors import QwenJobError, RendezvousFailed
from qwen_job.sockets import Waiting, choose_interface, free_port

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_POLL_SECONDS = 0.1
_COLLECTIVE_MINUTES = 30
_SPEAK_SECONDS = 5.0


class Place(NamedTuple):
    """The rank of this process, and how it reaches the others."""

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and reports."""
        return self.rank == 0


def place_from_environment() -> Place:
    """Read RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; a lone process is its own world.

    Raises:
        RendezvousFailed: the variables contradict each other.
    """
    read = os.environ.get
    place = Place(
        rank=int(read("RANK", "0")),
        world_size=int(read("WORLD_SIZE", "1")),
        local_rank=int(read("LOCAL_RANK", "0")),
        address=read("MASTER_ADDR", "127.0.0.1"),
        port=int(read("MASTER_PORT", "0")) or free_port(),
    )
    if not 0 <= place.rank < place.world_size:
        raise RendezvousFailed(
            f"RANK={place.rank} is not below WORLD_SIZE={place.world_size}: the launcher's variables contradict"
        )
    for name, value in zip(Place._fields, place, strict=True):
        variable = {"address": "MASTER_ADDR", "port": "MASTER_PORT"}.get(name, name.upper())
        os.environ.setdefault(variable, str(value))
    return place


def meet(place: Place, timeout_seconds: float = 60.0) -> Store:
    """Connect to the store and wait until every rank has checked in.

    Raises:
        RendezvousFailed: the store cannot be reached, or ranks are missing when the time is over.
    """
    from torch.distributed.rendezvous import rendezvous

    limit = timedelta(seconds=timeout_seconds)
    try:
        found: Any = next(rendezvous("env://", place.rank, place.world_size, timeout=limit))
        store: Store = found[0]
        # The agent's own keys live in the same store.
        store.set(f"qwen_job/here/{place.rank}", socket.gethostname())
    except (RuntimeError, ValueError, OSError) as error:
        raise RendezvousFailed(_unreachable(place, timeout_seconds, error)) from None
    absent = [f"qwen_job/here/{rank}" for rank in range(place.world_size)]
    waiting = Waiting(timeout_seconds)
    while absent:
        absent = [key for key in absent if not store.check([key])]
        if absent and waiting.left < 0:
            raise RendezvousFailed(_missing(place, absent, timeout_seconds))
        if absent:
            if place.is_first:
                waiting.report(f"{len(absent)} of {place.world_size} ranks: {_ranks(absent)}")
            time.sleep(_POLL_SECONDS)
    return store


def join(place: Place, store: Store, device: str) -> None:
    """Create the process group over ``store`` and hand it to DeepSpeed."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    quiet_deepspeed(device)
    choose_interface(place.address)
    if device == "cuda":
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=PrefixStore("qwen_job/group", store),
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(minutes=_COLLECTIVE_MINUTES),
        device_id=torch.device("cuda", place.local_rank) if device == "cuda" else None,
    )
    import deepspeed

    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)


def before_torch(device: str, torch_compile: object) -> None:
    """Set what torch reads when it is imported."""
    if device == "cpu":
        # DeepSpeed compiles functions that are never called here; importing the compiler takes seconds.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "0" if torch_compile is True else "1")


def quiet_deepspeed(device: str) -> None:
    """Import DeepSpeed quietly, and without compiling its shared-memory op on a CPU."""
    import logging
    import warnings

    # Of DeepSpeed's own calls, which nobody who reads a job's log can change.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # DeepSpeed looks for devices otherwise, and after that a process must not fork.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device == "cuda" else "cpu")

    import deepspeed  # noqa: F401
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if device == "cpu":
        # Minutes of compiling at first use, for a collective that gloo does as well. The name
        # `deepspeed.comm.torch` as an attribute is the torch package itself.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]


def once(place: Place, store: Store, name: str, work: Callable[[], Path]) -> Path:
    """Run ``work`` on rank 0, then give every rank its path; see :func:`tell`.

    A node that does not see the path (its cache is not shared) repeats the work on its local rank 0.
    """
    path = Path(tell(store, name, place.is_first, lambda: str(work())))
    if path.exists():
        return path
    here = f"{name}@{socket.gethostname()}"
    return Path(tell(store, here, place.local_rank == 0, lambda: str(work())))


def tell(store: Store, name: str, mine: bool, work: Callable[[], str | None]) -> str:
    """Return the answer of the one rank whose ``mine`` is true; its error is raised on all ranks.

    The others poll the store for as long as it takes: no collective is open, so none can time out.
    """
    key = f"qwen_job/told/{name}"
    if mine:
        try:
            answer = work() or ""
        except QwenJobError as error:
            store.set(key, f"error\n{type(error).__name__}\n{error}")
            raise
        store.set(key, f"done\n{answer}")
        return answer
    while not store.check([key]):
        time.sleep(_POLL_SECONDS)
    verdict, _, rest = store.get(key).decode().partition("\n")
    if verdict == "done":
        return rest
    kind, _, message = rest.partition("\n")
    raise getattr(errors, kind, QwenJobError)(message)


def speak_once(
    store: Store | None,
    words: str,
    speak: Callable[[], None],
    mine: bool | None = None,
    seconds: float = _SPEAK_SECONDS,
) -> None:
    """Call ``speak`` on one of the ranks that report the same ``words``; the others return when it has.

    That one is the first to come, or, if ``mine`` is given, the one that it is true for. The others wait, for at most
    ``seconds``, because the launcher ends every rank as soon as one has ended. Without a store nobody waits, and
    without ``mine`` too every rank speaks.
    """
    key = f"qwen_job/words/{hashlib.sha256(words.encode()).hexdigest()[:16]}"
    try:
        first = mine if mine is not None else store is None or store.add(key, 1) == 1
        deadline = time.monotonic() + seconds
        while not first and store is not None and not store.check([f"{key}/said"]) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    except (RuntimeError, OSError):
        store, first = None, True  # it went away with the rank or the launcher that kept it
    if first:
        speak()
        with contextlib.suppress(RuntimeError, OSError):
            if store is not None:
                store.set(f"{key}/said", "")


def _unreachable(place: Place, seconds: float, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"rank {place.rank} of {place.world_size} on {socket.gethostname()} could not reach the rendezvous at "
        f"{place.address}:{place.port} within {seconds:.0f} s ({reason}); check that MASTER_ADDR is the first "
        "node's address as the other nodes see it, that the port is open, and that node 0 was started"
    )


def _ranks(keys: list[str]) -> str:
    return ", ".join(key.rsplit("/", 1)[1] for key in keys[:16])


def _missing(place: Place, waiting: list[str], seconds: float) -> str:
    return (
        f"{len(waiting)} of {place.world_size} ranks did not check in at {place.address}:{place.port} within "
        f"{seconds:.0f} s (missing: {_ranks(waiting)}); check that every node was started with its own node rank and "
        "the same MASTER_ADDR and WORLD_SIZE"
    )
