"""How much disk space runs need below the job's output, and the warning where it is not free."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from qwen_job.job import Job
from qwen_job.plan.advice import PlanWarning
from qwen_job.plan.estimate.memory import PREPARED_DATA, MemoryEstimate
from qwen_job.text import GIB

# Fields of ``data`` that change no token.
_NOT_TOKENS = {"cache_dir", "num_workers", "samples", "tokens_per_sample"}


class DiskRoom(NamedTuple):
    """The free space for an output, as one machine sees it.

    ``free_bytes`` counts what the output already holds; ``mount`` is where the file system is mounted; ``folder`` the
    nearest existing folder above the output, on that file system.
    """

    free_bytes: int
    mount: str
    folder: str


def disk_needed(output: str, runs: Iterable[tuple[Job, MemoryEstimate]]) -> int:
    """Return the bytes that runs need below ``output`` if all are at their peak at once.

    Runs of a sweep share prepared data if it is the same. Data that is prepared in a folder elsewhere is not counted.
    """
    total, prepared = 0, {}
    for job, memory in runs:
        of_data = memory.disk.get(PREPARED_DATA, 0)
        total += memory.disk_bytes - of_data
        if not is_prepared_elsewhere(output, job):
            settings = job.data.model_dump_json(exclude=_NOT_TOKENS)
            where = job.data.cache_dir or job.output
            prepared[where, settings, job.train.model_max_length, job.model.name, job.model.revision] = of_data
    return total + sum(prepared.values())


def is_prepared_elsewhere(output: str, job: Job) -> bool:
    """Return whether ``data.cache_dir`` is not below ``output``."""
    cache = job.data.cache_dir
    return cache is not None and not PurePosixPath(cache).is_relative_to(output)


def disk_warning(output: str, needed: int, runs: int, room: DiskRoom | None) -> list[str]:
    """Return a warning if ``runs`` runs need more bytes than are free; none where the free space is not known."""
    if room is None or needed <= room.free_bytes:
        return []
    who = "the run needs" if runs == 1 else f"the {runs} runs of the sweep need"
    where = f"on the file system that this machine has at {room.mount}"
    parent = PurePosixPath(output).parent
    if PurePosixPath(room.folder) != parent:
        where += f" ({parent} does not exist here, so {room.folder} was looked at; the cluster may have another there)"
    message = f"{who} about {needed / GIB:.0f} GiB on disk, but {room.free_bytes / GIB:.0f} GiB are free {where}"
    fix = "free some space, keep fewer checkpoints (train.save_total_limit), or write elsewhere"
    return [str(PlanWarning("output", message, fix))]
