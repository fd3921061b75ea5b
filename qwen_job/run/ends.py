"""How each node's launcher ended, kept in the run folder because a deleted pod takes its log and state with it.

``launch/node-N.json``, one per node, holds the current attempt and the previous one. An attempt without an end was
killed together with its launcher, as Kubernetes does with every process of a container that exceeds its memory limit.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qwen_job.atomic import write_atomically
from qwen_job.run.cgroup_memory import memory_groups
from qwen_job.run.folder import RunFolder
from qwen_job.strict_json import load

MEMORY_ADVICE = (
    "'qwen-job plan' shows what a node's host memory must hold; ask for as much (slurm.memory, kubernetes.memory), or "
    "use fewer processes a node"
)
_MOST_BYTES = 65536
# The nodes of one attempt start within this many seconds of each other.
_START_SECONDS = 600.0


class End(NamedTuple):
    """One attempt on one node; times in unix seconds, ``ended`` is 0.0 while it runs or if it recorded no end."""

    host: str
    began: float
    ended: float = 0.0
    exit_code: int = 0
    oom_kills: int = 0


def begin(run: Path, node: int) -> None:
    """Record the start of an attempt on this node."""
    before = _read(_path(run, node))[:1]
    _write(run, node, [End(socket.gethostname(), time.time()), *before])


def end(run: Path, node: int, exit_code: int, oom_kills: int) -> None:
    """Record how it ended, and how many of its processes the kernel's OOM killer killed."""
    now, *before = _read(_path(run, node)) or [End(socket.gethostname(), time.time())]
    _write(run, node, [now._replace(ended=time.time(), exit_code=exit_code, oom_kills=oom_kills), *before])


def last_words(run: Path) -> str:
    """Return why the last finished attempt was killed, out of memory or from outside; else an empty string."""
    said = []
    for path in RunFolder(run).node_ends():
        found = _read(path)
        if found and not found[0].ended and time.time() - found[0].began < _START_SECONDS:
            found = found[1:]  # it belongs to the attempt that is starting now
        node = path.stem.removeprefix("node-")
        said += [f"node {node} ({found[0].host}) {words}" for words in _words(found[0])] if found else []
    return "; ".join(said)


def _words(attempt: End) -> Iterator[str]:
    if attempt.oom_kills:
        yield f"had {attempt.oom_kills} processes killed for memory"
    elif not attempt.ended:
        yield "was killed with its launcher, as the kernel does for memory"


def oom_kills(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many processes of this cgroup the OOM killer has killed; 0 if that is not counted.

    cgroup v2: ``oom_kill`` in memory.events; v1: in memory.oom_control (the kernel's admin-guide, cgroup-v2 and memcg).
    """
    with contextlib.suppress(OSError):
        for base, group, version in memory_groups(root, own):
            name = "memory.oom_control" if version == 1 else "memory.events"
            for file in (base / group / name, base / name):
                if file.is_file():
                    return _count(file.read_text("ascii", "replace"))
    return 0


def _count(text: str) -> int:
    counts = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) >= 2)
    return int(counts["oom_kill"]) if counts.get("oom_kill", "").isdecimal() else 0


def _path(run: Path, node: int) -> Path:
    return RunFolder(run).node_end(node)


def _read(path: Path) -> list[End]:
    try:
        value = load(path, max_bytes=_MOST_BYTES)
        return [
            End(str(v["host"]), float(v["began"]), float(v["ended"]), int(v["exit_code"]), int(v["oom_kills"]))
            for v in value
        ]
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return []


def _write(run: Path, node: int, attempts: list[End]) -> None:
    """Storage that cannot be written is the trainer's to report."""
    with contextlib.suppress(OSError):
        write_atomically(_path(run, node), json.dumps([attempt._asdict() for attempt in attempts]) + "\n")
