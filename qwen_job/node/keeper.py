"""The folder in /dev/shm in which the trainer keeps its newest state: the launcher owns it, so it outlives workers.

- ``open_memory``: create or take over this node's folder, if the job saves in memory and it fits
- ``Memory.close``: delete it, unless the next attempt may start here
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

from qwen_job import strict_yaml
from qwen_job.errors import EnvironmentFault, StoppedAndSaved, is_retryable
from qwen_job.run import states as memory
from qwen_job.run.cgroup_memory import memory_limit
from qwen_job.text import gib_or_mib

# Set by a batch script that starts the next attempt on the same nodes.
KEEP = "QWEN_JOB_KEEP_MEMORY"
_LOCK_SECONDS = 5.0


class Memory:
    """This node's folder, locked for as long as the launcher lives."""

    def __init__(self, run: Path, home: Path, lock: IO[bytes]) -> None:
        self.run, self.home = run, home
        self._lock = lock
        os.environ[memory.HOME] = str(home)

    def newest(self) -> int:
        """Return the step of this node's newest state; -1 without one."""
        return max((state.step for state in memory.states([self.home])), default=-1)

    def close(self, code: int) -> None:
        """Delete the folder at the end of an attempt, unless ``code`` is retryable and the job may come back here.

        Under Slurm a requeued job may start on other nodes, and nobody would delete it on these.
        """
        os.environ.pop(memory.HOME, None)
        comes_back = KEEP in os.environ or "SLURM_JOB_ID" not in os.environ
        states = memory.states([self.home])
        if is_retryable(code) and code != StoppedAndSaved.exit_code and comes_back and states:
            size = gib_or_mib(sum(state.bytes for state in states))
            _say(f"step {states[0].step} stays in memory for the next attempt on this node ({size} in {self.home})")
        else:
            shutil.rmtree(self.home, ignore_errors=True)
            for home in memory.homes_here(self.run, self.home.parent):
                memory.remove(home)
        self._lock.close()


def open_memory(run: Path | None, command: list[str], node: int, root: Path = memory.SHARED_MEMORY) -> Memory | None:
    """Return this node's folder for states in memory; None if the job saves none, or they do not fit.

    ``command``: the arguments of ``python -m qwen_job.train``.

    Raises:
        EnvironmentFault: train.memory_save_steps is a number, and the states do not fit.
    """
    settings = _settings(command) if run is not None else {}
    steps, wanted = _steps(settings), _planned(settings, "memory_save_bytes")
    if run is None or not steps:
        return None
    memory.sweep(run, root)
    reason = _too_small(run, wanted, root) or _over_limit(wanted, _planned(settings, "host_memory_bytes"))
    found = None
    if not reason:
        home = memory.home_of(run, node, root)
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            lock = _locked(home) if memory.is_ours(home) else None
            found = Memory(run, home, lock) if lock else None
            reason = f"{home} belongs to another process"
        except OSError as error:
            reason = f"{home} cannot be written ({error.strerror})"
    if found is None:
        if steps != "auto":
            raise EnvironmentFault(
                f"train.memory_save_steps: {steps}: {reason}; make room on {memory.host_label()} (docker and podman: "
                "--shm-size or --ipc=host, Kubernetes: kubernetes.shm_size), or write 0 to save on disk only"
            )
        _say(f"node {node} keeps no state in memory: {reason}")
    return found


def _locked(home: Path) -> IO[bytes] | None:
    """Wait a moment for a launcher that is leaving."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while (lock := memory.lock_home(home)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
        home.mkdir(mode=0o700, exist_ok=True)
    return lock


def _too_small(run: Path, wanted: int, root: Path) -> str:
    if not root.is_dir():
        return f"{root} does not exist"
    kept = sum(state.bytes for state in memory.states(memory.homes_here(run, root)))
    space = os.statvfs(root)
    free = space.f_bavail * space.f_frsize + kept
    if free < wanted:
        return f"states in memory take {gib_or_mib(wanted)}, and {root} has {gib_or_mib(free)} free"
    return ""


def _over_limit(wanted: int, others: int) -> str:
    """Return why the limit of the job or container, which counts /dev/shm, has no room for the states; "" if it has."""
    limit = memory_limit()
    if limit is None or wanted + others <= limit:
        return ""
    return (
        f"states in memory take {gib_or_mib(wanted)} and the job {gib_or_mib(others)}, and its memory limit is "
        f"{gib_or_mib(limit)} (slurm.memory, kubernetes.memory)"
    )


def _settings(command: list[str]) -> dict[str, Any]:
    try:
        found = strict_yaml.load(Path(command[1]))
    except (OSError, ValueError, LookupError):
        return {}  # the trainer reports what is wrong
    return found if isinstance(found, dict) else {}


def _steps(settings: dict[str, Any]) -> int | str:
    training = settings.get("training")
    value = training.get("memory_save_steps", 0) if isinstance(training, dict) else 0
    return value if value == "auto" or (isinstance(value, int) and value > 0) else 0


def _planned(settings: dict[str, Any], name: str) -> int:
    plan = settings.get("plan")
    value = plan.get(name) if isinstance(plan, dict) else None
    return value if isinstance(value, int) else 0


def _say(text: str) -> None:
    print(f"qwen-job: {text}", file=sys.stderr, flush=True)
