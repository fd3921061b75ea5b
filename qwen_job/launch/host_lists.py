"""hostfile.hosts from elsewhere: a file, the Slurm allocation that we are in, or that of a job that runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qwen_job.atomic import read_limited
from qwen_job.errors import JobError
from qwen_job.hosts import expand_hosts
from qwen_job.job.hostfile import ALLOCATION
from qwen_job.launch.slurm.backend import SlurmBackend
from qwen_job.plan import Plan

MAX_BYTES = 16 * 2**20
_LINE = re.compile(r"(\S+)(?:\s+slots=(\d+))?")


def with_hosts(plan: Plan) -> Plan:
    """Return the plan with machines' names in the place of files and allocations.

    Raises:
        JobError: the field names no hosts.
        EnvironmentFault: Slurm is unreachable.
    """
    names: list[str] = []
    problems = []
    for index, entry in enumerate(plan.job.hostfile.hosts):
        try:
            names += _names(plan, index, entry)
        except ValueError as error:
            problems.append(plan.job.problem(("hostfile", "hosts", index), str(error)))
    if problems:
        raise JobError(problems)
    hostfile = plan.job.hostfile.model_copy(update={"hosts": names})
    sweep = tuple(run._replace(plan=with_hosts(run.plan)) for run in plan.sweep)
    return replace(plan, job=plan.job.model_copy(update={"hostfile": hostfile}), sweep=sweep)


def _names(plan: Plan, index: int, entry: str) -> list[str]:
    """Return the hosts that an entry stands for; a name or a range as it is.

    Raises:
        ValueError: the entry is not a name or a range.
    """
    if entry == ALLOCATION:
        return _of_this_allocation()
    if entry.startswith(f"{ALLOCATION}:"):
        return _of_job(entry.removeprefix(f"{ALLOCATION}:"))
    written = plan.job.problem(("hostfile", "hosts", index), "")
    # An entry from --set or a pipe has no folder, so it is relative to the current one.
    elsewhere = not written.line or written.source.startswith(("/dev/", "/proc/"))
    path = (Path() if elsewhere else Path(written.source).parent) / Path(entry).expanduser()
    return _of_file(path, plan.gpus_per_node) if "/" in entry or path.is_file() else [entry]


def _of_this_allocation() -> list[str]:
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    if not nodes:
        raise ValueError(
            f"{ALLOCATION}: SLURM_JOB_NODELIST is not set: run this inside salloc or sbatch, or write "
            f"{ALLOCATION}:JOBID for a job that runs"
        )
    return expand_hosts([nodes])


def _of_job(job: str) -> list[str]:
    if not job.isdecimal():
        raise ValueError(f"{ALLOCATION}:{job}: write the number of a job that runs, as in {ALLOCATION}:1234")
    slurm = SlurmBackend()
    found = next((entry for entry in slurm.entries() if slurm.is_mine(entry) and entry.id == job), None)
    if found is None:
        raise ValueError(f"{ALLOCATION}:{job}: the queue has no job {job} of yours; 'squeue --me' lists them")
    if found.state != "running" or not found.nodes:
        raise ValueError(f"{ALLOCATION}:{job}: job {job} is {found.state}: it has no nodes now")
    return expand_hosts([found.nodes])


def _of_file(path: Path, gpus: int) -> list[str]:
    """Read a host or a range a line, or DeepSpeed's ``name slots=N``; what follows a ``#`` is a comment."""
    try:
        lines = read_limited(path, MAX_BYTES, pipes=True).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: cannot be read: it is not text") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = [name for number, line in enumerate(lines, 1) for name in _of_line(line, f"{path}:{number}", gpus)]
    if not names:
        raise ValueError(f"{path}: names no host: write one a line, as in gpu01 or gpu01 slots={gpus}")
    return names


def _of_line(line: str, where: str, gpus: int) -> Iterable[str]:
    text = line.partition("#")[0].strip()
    if not text:
        return []
    found = _LINE.fullmatch(text)
    if not found:
        raise ValueError(f"{where}: {text[:80]!r} is no host: write gpu01 or gpu01 slots={gpus}")
    if found[2] and len(found[2]) < 10 and int(found[2]) < gpus:
        raise ValueError(f"{where}: slots={found[2]}, but cluster.gpus_per_node is {gpus}; make them equal")
    try:
        return expand_hosts([found[1]])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
