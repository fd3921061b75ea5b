"""The memory limit of the control group that a process is in: a Slurm job's, a container's or a pod's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# cgroup v1 writes "no limit" as the largest number of pages.
_NO_LIMIT = 2**60


_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_groups(root: Path = _ROOT, own: Path = _OWN) -> Iterator[tuple[Path, PurePosixPath, int]]:
    """Yield where a hierarchy that counts memory is, this process's group in it, and its version: 1 or 2.

    Raises:
        OSError, ValueError: the system has no control groups, or lists them in another way.
    """
    for line in own.read_text("utf-8").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds or "memory" in kinds.split(","):
            yield (root / "memory" if kinds else root), PurePosixPath(path.lstrip("/")), 1 if kinds else 2


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return the lowest limit in bytes of this process's group and those above it; None without one.

    cgroup v2: memory.max; v1: memory.limit_in_bytes (the kernel's admin-guide, cgroup-v2 and memcg).
    """
    limits = list[int]()
    with contextlib.suppress(OSError, ValueError):
        for base, own_group, version in memory_groups(root, own):
            name = "memory.limit_in_bytes" if version == 1 else "memory.max"
            for group in (own_group, *own_group.parents):
                with contextlib.suppress(OSError, ValueError):  # hidden from a container, or "max"
                    limits.append(int((base / group / name).read_text("ascii")))
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)
