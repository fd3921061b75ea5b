"""A run's newest state in host memory: plain files below /dev/shm, one folder per node, named after the run.

    /dev/shm/qwen-job-RUN-HOST.NODE/node-0/step-12/manifest.json

The launcher of the node owns the folder, so that it outlives its workers; the trainer finds it by ``HOME``. A state is
what the ranks of one node need to resume: ``node-0`` is this node's own, ``node-1`` the copy of its neighbour's. Like a
checkpoint's, its manifest is written last, and without a matching one the state does not exist. Nothing here imports
torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from qwen_job import strict_json
from qwen_job.atomic import write_atomically
from qwen_job.run.folder import MANIFEST, deepspeed_tag, step_name, step_of

# The variable that gives the workers of a node their folder.
HOME = "QWEN_JOB_MEMORY"
SHARED_MEMORY = Path("/dev/shm")
_LOCK = "lock"
_NODE = re.compile(r"node-([0-9]+)")
_MANIFEST_BYTES = 64 * 2**20
_BLOCK = 2**24
_WAITING_SECONDS = 600.0


class Sum(NamedTuple):
    """Size and CRC-32 of one file: memory does not need a cryptographic hash, which takes as long as the write."""

    size: int
    crc32: int


class State(NamedTuple):
    """The state of one node's ranks at a step, complete; its numbers are those of the attempt that saved it."""

    node: int
    step: int
    path: Path
    nodes: int
    world_size: int
    zero_stage: int
    files: dict[str, Sum]
    expert_parallel_size: int = 1

    @property
    def bytes(self) -> int:
        """Its size."""
        return sum(entry.size for entry in self.files.values())


def host_label() -> str:
    """Return the name of this host as Slurm knows it, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", os.environ.get("SLURMD_NODENAME") or socket.gethostname())


def home_of(run: Path, node: int, root: Path = SHARED_MEMORY) -> Path:
    """Return the folder of a run on this host for the launcher of rank ``node``."""
    return root / f"{_prefix(run)}{host_label()}.{node}"


def homes_here(run: Path, root: Path = SHARED_MEMORY) -> list[Path]:
    """Return this user's folders of a run on this host, whatever their launchers' ranks were."""
    found = sorted(root.glob(f"{_prefix(run)}{host_label()}.*")) if root.is_dir() else []
    return [home for home in found if is_ours(home)]


def _prefix(run: Path) -> str:
    return f"qwen-job-{hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:12]}-"


def sweep(run: Path, root: Path = SHARED_MEMORY) -> list[Path]:
    """Delete this user's folders of other runs whose launchers have ended, such as by SIGKILL; returns them.

    One that was written within the last minutes may be waiting for its next attempt.
    """
    found = sorted(root.glob("qwen-job-*-*.*")) if root.is_dir() else []
    others = [home for home in found if is_ours(home) and not home.name.startswith(_prefix(run))]
    return [home for home in others if time.time() - _written(home) > _WAITING_SECONDS and remove(home)]


def remove(home: Path) -> bool:
    """Delete a folder, unless a launcher has it; tells whether it was deleted."""
    try:
        lock = lock_home(home)
    except OSError:
        return False
    if lock is None:
        return False
    with lock:
        shutil.rmtree(home, ignore_errors=True)
    return True


def _written(home: Path) -> float:
    times = []
    for path in (home, home / _LOCK, *home.glob("node-*")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def is_ours(home: Path) -> bool:
    """Tell whether a folder of /dev/shm, where everybody may write, is a real one of this user."""
    try:
        found = home.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()


def lock_home(home: Path) -> IO[bytes] | None:
    """Return what keeps ``home`` until it is closed or the process ends; None while another launcher has it.

    Raises:
        OSError: ``home`` does not exist, or cannot be written.
    """
    path = home / _LOCK
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # another launcher has it, or has just deleted it
    lock.close()
    return None


def state_path(home: Path, node: int, step: int) -> Path:
    """Return the folder of a node's state."""
    return home / f"node-{node}" / step_name(step)


def aside(path: Path) -> Path:
    """Return where a state is written until it is complete."""
    return path.with_name(f".{path.name}.partial")


def crc_of(path: Path) -> Sum:
    """Return size and CRC-32 of a file in memory."""
    size = path.stat().st_size
    value = 0
    if size:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            view = memoryview(content)
            for start in range(0, size, _BLOCK):
                value = zlib.crc32(view[start : start + _BLOCK], value)
            view.release()
    return Sum(size, value)


def make_room(path: Path, keep: int) -> None:
    """Prepare ``aside(path)`` for a node's next state, and delete its states other than that of step ``keep``.

    The files of one of them are taken over: memory that a file has is written three times as fast as memory that the
    kernel has to clear first.
    """
    part = aside(path)
    for folder in list(path.parent.glob("*")):
        if folder.name == step_name(keep):
            continue
        if part.exists() or not _take_over(folder, part, path):
            discard(folder)
    part.mkdir(parents=True, exist_ok=True)


def _take_over(folder: Path, part: Path, path: Path) -> bool:
    """Make a state's files those of ``part``, if it was complete and nobody else can see them."""
    state = _state(folder)
    # What an ended attempt left in part may still be open in one of its processes. A state that was adopted has links.
    if state is None or not all(_has_one_link(folder / name) for name in state.files):
        return False
    if not (folder / deepspeed_tag(state.step)).is_dir():
        return False
    (folder / MANIFEST).unlink()
    folder.rename(part)
    (part / deepspeed_tag(state.step)).rename(part / deepspeed_tag(step_of(path.name) or 0))
    return True


def _has_one_link(path: Path) -> bool:
    try:
        return path.stat().st_nlink == 1
    except OSError:
        return False


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Open a file whose content is to be replaced, in the memory that it has; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
        yield file
        file.truncate()


def publish(state: State) -> None:
    """Make the state that was written at ``aside(state.path)`` complete; one of the same step is replaced."""
    part = aside(state.path)
    for left_over in [file for file in part.rglob("*") if not file.is_dir()]:
        if str(left_over.relative_to(part)) not in state.files:
            left_over.unlink()
    shutil.rmtree(state.path, ignore_errors=True)
    part.rename(state.path)
    write_atomically(state.path / MANIFEST, manifest_text(state), sync=False)


def manifest_text(state: State) -> str:
    """Return the state's manifest, one line."""
    content = {
        "version": 1,
        "node": state.node,
        "step": state.step,
        "nodes": state.nodes,
        "world_size": state.world_size,
        "zero_stage": state.zero_stage,
        "expert_parallel_size": state.expert_parallel_size,
        "files": {name: list(entry) for name, entry in sorted(state.files.items())},
    }
    return json.dumps(content) + "\n"


def parse_manifest(text: bytes | str, path: Path) -> State:
    """Return the state that ``path`` holds according to its manifest.

    Raises:
        ValueError: it is no manifest, or names files outside the folder.
    """
    value = strict_json.loads(text if isinstance(text, str) else text.decode())
    try:
        files = {str(name): Sum(int(size), int(crc)) for name, (size, crc) in value["files"].items()}
        numbers = [int(value[key]) for key in ("node", "step", "nodes", "world_size", "zero_stage")]
        split = int(value.get("expert_parallel_size", 1))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no manifest ({error})") from None
    if any(name.startswith("/") or ".." in Path(name).parts for name in files):
        raise ValueError("names files outside its folder")
    node, step, nodes, world_size, zero_stage = numbers
    return State(node, step, path, nodes, world_size, zero_stage, files, split)


def states(homes: Iterable[Path]) -> list[State]:
    """Return every complete state below ``homes``, newest first; its content is not verified."""
    found = [state for home in homes for folder in home.glob("node-*/step-*") if (state := _state(folder))]
    return sorted(found, key=lambda state: -state.step)


def _state(folder: Path) -> State | None:
    try:
        text = (folder / MANIFEST).read_bytes()
        state = parse_manifest(text, folder) if len(text) <= _MANIFEST_BYTES else None
    except (OSError, ValueError):
        return None
    node = _NODE.fullmatch(folder.parent.name)
    right = state and node and state.node == int(node[1]) and state.step == step_of(folder.name)
    return state if right else None


def damage(state: State, place: int = 0, places: int = 1) -> str:
    """Read one of ``places`` shares of the state's files; returns what is wrong with the first damaged one, or ""."""
    for number, (name, entry) in enumerate(sorted(state.files.items())):
        if number % places != place:
            continue
        try:
            found = crc_of(state.path / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != entry:
            return f"{name} does not match its checksum"
    return ""


def prune(home: Path, keep: int) -> None:
    """Delete the states of ``home`` other than those of step ``keep``, and what was written in part."""
    for folder in home.glob("node-*/*"):
        if folder.name != step_name(keep):
            discard(folder)


def forget_nodes(home: Path, others_than: set[int]) -> None:
    """Delete the states of all other nodes, which this one had in an earlier attempt."""
    for folder in home.glob("node-*"):
        if not (found := _NODE.fullmatch(folder.name)) or int(found[1]) not in others_than:
            for path in folder.glob("*"):
                discard(path)


def discard(path: Path) -> None:
    """Delete a state, its manifest first."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def newest_remembered(run: Path, root: Path = SHARED_MEMORY) -> int:
    """Return the newest step of which this host has a state of the run in memory, -1 without one."""
    return max((state.step for state in states(homes_here(run, root))), default=-1)
