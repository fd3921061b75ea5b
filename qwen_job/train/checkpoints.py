"""Writes a checkpoint of all ranks: in a temporary folder, renamed, with the manifest last.

- ``Checkpointer``: one save at a time, to disk or to memory
- ``Snapshots``: the copy that is written while training continues

DeepSpeed collects the state; this module takes over where it would write a file. The state is copied to host
memory at once (the pause), and a thread writes, syncs and hashes it while training continues. ``finish`` is a
collective: it gathers every rank's files, renames the folder and writes the manifest. It also gathers errors, so that
all ranks fail alike and the previous checkpoint is kept.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed.utils
import psutil
import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from qwen_job.errors import EnvironmentFault, QwenJobError, Retryable
from qwen_job.run import states
from qwen_job.text import gib
from qwen_job.train.media import Disk, Medium

# Errors of storage that is unavailable for a while.
_PASSING = tuple(os.strerror(code) for code in (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN))


# The share of the free host memory that the copies of one node may take.
_SHARE_OF_FREE = 0.8
_CGROUP = Path("/sys/fs/cgroup")


class Saved(NamedTuple):
    """How long a save took, how long training paused for it, and its size."""

    step: int
    seconds: float
    pause_seconds: float
    bytes: int


class MemoryFull(Retryable):
    """A state could not be kept in memory: training continues without."""


class Checkpointer(CheckpointEngine):  # type: ignore[misc]
    """Writes checkpoints to ``disk``, or to another medium; give it to a DeepSpeed engine as its ``checkpoint_engine``.

    ``background`` lets training continue while files are written; one save is under way at a time. ``guard`` is called
    on rank 0 before a checkpoint appears or goes, and ends a process that may not write any more.
    """

    def __init__(
        self,
        folder: Path,
        *,
        zero_stage: int,
        background: bool,
        expert_parallel_size: int = 1,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self.guard = guard
        self.folder = folder
        self.disk = Disk(folder, zero_stage, expert_parallel_size)
        self.medium: Medium | Disk = self.disk
        self.background = background
        self._snapshots = Snapshots()
        self._sizes: list[int] | None = None
        self._reserving: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future[None]] = []
        self._files: dict[str, Any] = {}
        self._errors: list[str] = []
        self.files: list[dict[str, Any]] = []  # of the newest save, by rank
        self._step: int | None = None
        self._began = self._paused = 0.0

    @property
    def under_way(self) -> int | None:
        """The step whose save has begun and is not finished."""
        return self._step

    @property
    def written(self) -> bool:
        """Tell whether this rank has written all its files of the save under way."""
        return all(write.done() for write in self._writes)

    def reserve(self, collect: Callable[[Path], None], medium: Medium | None = None) -> str | None:
        """Make room in host memory for a save, in the background: arguments as for ``begin``, but nothing is kept.

        Returns why training will wait for saves instead, where a node lacks the memory. A collective of all ranks.
        """
        sizes: list[int] = []
        self._sizes, self.medium = sizes, medium or self.disk
        try:
            collect(self._aside)
        finally:
            self._sizes = None
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        mine = (sum(sizes), available_memory() // ranks)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        for rank, (wanted, free) in enumerate(everyone):
            if wanted > _SHARE_OF_FREE * free:
                self.background = False
                return (
                    f"training waits while checkpoints are written: a copy of the state takes {gib(wanted)} "
                    f"on rank {rank}, whose share of the free host memory is {gib(free)}"
                )
        self._reserving = self._pool.submit(self._snapshots.reserve, sizes)
        return None

    def begin(self, step: int, collect: Callable[[Path], None], medium: Medium | None = None) -> None:
        """Copy the state of ``step``: ``collect(folder)`` saves it through the engine and :meth:`keep`.

        A collective of all ranks.
        """
        self._open(step, medium or self.disk)
        if self._reserving is not None:
            self._reserving.result()
        self._snapshots.restart()
        collect(self._aside)
        if not self.background and self.medium is self.disk:
            self._wait()
        self._paused = time.monotonic() - self._began

    def begin_copy(self, step: int, source: Path, names: Sequence[str], began: float) -> None:
        """Write ``names`` of ``source``, a complete state of ``step`` in memory, to disk while training continues.

        ``began``: when the save of that state did. A collective of all ranks.
        """
        self._open(step, self.disk)
        for name in names:
            self._submit(self._aside / name, partial(_copy, source / name))
        if self.disk.leads:
            self.keep_recovery_scripts("")
        self._began, self._paused = began, time.monotonic() - began

    def _open(self, step: int, medium: Medium | Disk) -> None:
        self._began = time.monotonic()
        self.medium = medium
        self._step, self._files, self._errors, self._writes = step, {}, [], []
        if medium.leads:
            self.guard()
            self._attempt(partial(medium.prepare, step))
        dist.barrier()

    def finish(self) -> Saved:
        """Complete the save under way. A collective of all ranks.

        Raises:
            EnvironmentFault: some rank could not write; the previous checkpoint is untouched.
            Retryable: the storage is only away for a while.
            MemoryFull: it was to be kept in memory.
        """
        started = time.monotonic()
        self._wait()
        step = self._step
        assert step is not None
        self._step = None
        everything, problems = self._gather()
        self.files = [files for files, _ in everything]
        if not problems:
            if self.medium.leads:
                self.guard()
                self._attempt(lambda: self.medium.publish(step, self.files))
            _, problems = self._gather()
        if problems:
            raise self._failure(step, problems)
        now = time.monotonic()
        size = sum(entry.size for part in self.files for entry in part.values())
        return Saved(step, now - self._began, self._paused + now - started, size)

    def _gather(self) -> tuple[list[Any], list[str]]:
        everything: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everything, (self._files, self._errors))
        return everything, [f"rank {rank}: {text}" for rank, (_, errors) in enumerate(everything) for text in errors]

    def keep(self, name: str, value: object) -> None:
        """Save ``value`` with torch.save as ``name`` in the checkpoint under way."""
        self.save(value, str(self._aside / name))

    def keep_text(self, name: str, text: str) -> None:
        """Write ``text`` as ``name`` in the checkpoint under way."""
        self._submit(self._aside / name, lambda path: path.write_text(text, encoding="utf-8"))

    def keep_recovery_scripts(self, _folder: str) -> None:
        """Put DeepSpeed's scripts that read its shards into the checkpoint: its own copying would raise on one rank."""
        if self.medium is not self.disk:
            return
        for name in ("zero_to_fp32.py", "zero_to_torch.py"):
            source = Path(deepspeed.utils.__file__).with_name(name)
            self._submit(self._aside / name, partial(shutil.copy, source))

    # What DeepSpeed calls.

    def create(self, info: Any) -> None:
        """Do nothing."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if self._sizes is None:
            self._attempt(lambda: Path(path).mkdir(parents=True, exist_ok=exist_ok))

    def save(self, state_dict: Any, path: str) -> None:
        if self._sizes is not None:
            map_tensors(state_dict, self._note_size)
            return
        value = self._snapshots.copy(state_dict) if self.background else state_dict
        if self.background and torch.cuda.is_available():
            torch.cuda.synchronize()  # the copies must be complete before the thread reads them
        write = torch.save if self.medium is self.disk else _save_unchecked
        if self.background:
            self._submit(Path(path), partial(write, value))
            return
        # Training will change the tensors; what is known about the file may be found out later.
        self._attempt(partial(write, value, path))
        self._submit(Path(path), lambda _: None)

    def load(self, path: str, map_location: Any = None) -> Any:
        # Our own file, its hash just checked against the manifest.
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: Any) -> bool:
        """Do nothing: ``finish`` commits."""
        return True

    def preserves_storage_sharing(self) -> bool:
        return False

    # Internals.

    def _note_size(self, tensor: torch.Tensor) -> None:
        if self._sizes is not None and tensor.device.type == "cuda":
            self._sizes.append(tensor.numel() * tensor.element_size())

    @property
    def _aside(self) -> Path:
        # While room is reserved there is no step yet, and nothing is written.
        return self.medium.aside(self._step or 0)

    def _submit(self, path: Path, write: Callable[[Path], object]) -> None:
        if self._sizes is not None:
            return

        name, describe_file = str(path.relative_to(self._aside)), self.medium.describe

        def work() -> None:
            write(path)
            self._files[name] = describe_file(path)

        self._writes.append(self._pool.submit(self._attempt, work))

    def _attempt(self, work: Callable[[], object]) -> None:
        """Run ``work``; ``finish`` raises its error, because other ranks are waiting in collectives now."""
        try:
            work()
        except (OSError, RuntimeError) as error:
            self._errors.append(" ".join(str(error).split())[:200])

    def _wait(self) -> None:
        for write in self._writes:
            write.result()

    def _failure(self, step: int, problems: list[str]) -> QwenJobError:
        if self.medium.leads:
            shutil.rmtree(self.medium.aside(step), ignore_errors=True)
        if self.medium is not self.disk:
            return MemoryFull("; ".join(dict.fromkeys(problems[:4])))
        what = f"the checkpoint of step {step} could not be written below {self.folder} ({'; '.join(problems[:4])})"
        if any(sign in text for text in problems for sign in _PASSING):
            return Retryable(f"{what}; earlier ones are intact; run the same job again to resume")
        return EnvironmentFault(
            f"{what}; earlier checkpoints are intact: make room or correct permissions, then run the job again"
        )


def _save_unchecked(value: object, path: str | Path) -> None:
    """Save as torch does, without the checksums inside its file, which take half of the time; the file gets ours."""
    usual = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with states.written(Path(path)) as file:
            torch.save(value, file)
    finally:
        torch.serialization.set_crc32_options(usual)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def available_memory(cgroup: Path = _CGROUP) -> int:
    """Return the bytes of host memory that this node, or the container's limit, still has."""
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or "max"
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


class Snapshots:
    """Copies of nested states in host memory.

    Buffers are page-locked, so that they fill at the speed of the bus, and kept from save to save, because allocating
    them takes longer than filling them.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, list[torch.Tensor]] = {}  # by size: saves to disk and to memory copy other tensors
        self._used: Counter[int] = Counter()

    def restart(self) -> None:
        """Reuse the buffers of the save before, which must be finished."""
        self._used.clear()

    def reserve(self, sizes: Sequence[int]) -> None:
        """Allocate buffers of these sizes in bytes: of the tensors on the GPU."""
        for size, count in Counter(sizes).items():
            buffers = self._buffers.setdefault(size, [])
            buffers += [page_locked(size) for _ in range(count - len(buffers))]

    def copy(self, value: object) -> Any:
        """Copy ``value`` with all its tensors, so that training may continue to change it."""
        return map_tensors(value, self._copy_tensor)

    def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cuda":
            return tensor.clone()
        buffer = self._buffer(tensor.numel() * tensor.element_size())
        target = buffer.view(tensor.dtype).view(tensor.shape)
        return target.copy_(tensor, non_blocking=True)

    def _buffer(self, size: int) -> torch.Tensor:
        buffers, place = self._buffers.setdefault(size, []), self._used[size]
        self._used[size] += 1
        if place == len(buffers):
            buffers.append(page_locked(size))
        return buffers[place]


def map_tensors(value: object, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return ``value`` with every tensor in its dictionaries, lists and tuples replaced by ``change(tensor)``."""
    if isinstance(value, torch.Tensor):
        return change(value.detach())
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, map_tensors(item, change)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def page_locked(size: int) -> torch.Tensor:
    """Return ``size`` bytes of page-locked host memory; ordinary memory where the driver does not lock it.

    Touched first, then locked: eight times as fast as torch's ``pin_memory``, which blocks every kernel launch while
    the operating system clears page after page (BENCHMARKS.md). No page is shared between buffers: it could be locked
    for the first one only.
    """
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = torch.empty(pages + mmap.PAGESIZE, dtype=torch.uint8).zero_()
    start = -memory.data_ptr() % mmap.PAGESIZE
    if size:
        torch.cuda.cudart().cudaHostRegister(memory.data_ptr() + start, pages, 0)
    return memory[start : start + size]
