"""The memory limit of the control group that a process is in: a Slurm job's, a container's or a pod's."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

# cgroup v1 writes "no limit" as the largest number of pages.
_NO_LIMIT = 2**60


def memory_limit(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the lowest limit in bytes of this process's group and those above it; None without one.

    cgroup v2: memory.max; v1: memory.limit_in_bytes (the kernel's admin-guide, cgroup-v2 and memcg).
    """
    limits = list[int]()
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text("utf-8").splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            base, name = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
            for group in (PurePosixPath(path.lstrip("/")), *PurePosixPath(path.lstrip("/")).parents):
                with contextlib.suppress(OSError, ValueError):  # hidden from a container, or "max"
                    limits.append(int((base / group / name).read_text("ascii")))
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)
