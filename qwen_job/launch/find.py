"""From what the user typed (a name, an id, a run's folder, nothing) to jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_job.errors import EnvironmentFault, QwenJobError, UsageError
from qwen_job.launch.backend import TARGETS, Entry, backend
from qwen_job.launch.index import Submission, submissions
from qwen_job.launch.progress import Progress, progress_of

GONE = "gone"
# In a list of many jobs that many are asked, and so many seconds; a job that was named is waited for.
_MOST_ASKED, _PATIENCE, _PATIENCE_FOR_ONE = 16, 1.5, 10.0


@dataclass(frozen=True)
class Found:
    """One job with its run's progress."""

    entry: Entry
    progress: Progress


def find(word: str | None, target: str | None, *, old: bool = False, ask: bool = True) -> list[Found]:
    """Return the jobs that ``word`` names, or all that a queue knows (``old``: also those it has forgotten).

    With ``ask`` the pods are asked for the progress of runs whose folders this machine does not see.

    Errors: :class:`EnvironmentFault` when the target's tools are not here; :class:`UsageError` when nothing matches.
    """
    entries = _entries([target] if target else TARGETS, required=target is not None)
    known = {(entry.target, entry.id): entry for entry in entries}
    past = [item for item in submissions() if target in (None, item.target)]
    arrays = {(entry.target, entry.id.partition("_")[0]) for entry in entries}
    for item in past if word or old else []:
        if (item.target, item.id) not in arrays:
            known.setdefault((item.target, item.id), _forgotten(item))
    runs = {(item.target, item.id): item.run for item in past}
    jobs = [entry if entry.run else _with_run(entry, runs) for entry in known.values()]
    if word:
        jobs = [entry for entry in jobs if _named(entry, word)]
        if not jobs and Path(word, "train.yaml").exists():
            jobs = [Entry("", "", Path(word).name, GONE, run=str(Path(word).resolve()))]
        if not jobs:
            raise UsageError(
                f"no job {word!r}: give a job's name, its id or its run's folder; 'qwen-job status --all' lists"
            )
    found = [Found(entry, progress_of(entry.run)) for entry in jobs]
    found = _asked(found, seconds=_PATIENCE_FOR_ONE if word else _PATIENCE) if ask else found
    return [_with_restarts(job) for job in found]


def _with_restarts(job: Found) -> Found:
    """An operator that makes pods anew does not count them; the run does."""
    attempt = job.progress.attempt or 0
    if job.entry.target != "kubernetes" or attempt <= job.entry.restarts:
        return job
    return replace(job, entry=replace(job.entry, restarts=attempt))


def _asked(found: list[Found], *, seconds: float) -> list[Found]:
    """Ask the newest running jobs whose folders this machine does not see, and why the newest others have no pods."""
    ours = [job for job in found if job.entry.target == "kubernetes"]
    blind = [job for job in ours if job.entry.state == "running" and not job.progress.state][:_MOST_ASKED]
    mute = [job for job in ours if not job.entry.pods and job.entry.reason in ("", "suspended")][:_MOST_ASKED]
    mute = [job for job in mute if job.entry.state in ("pending", "suspended")]
    told: dict[int, Found] = {}
    if blind or mute:
        from qwen_job.launch import kubernetes

        steps = kubernetes.progress([job.entry for job in blind], seconds=seconds) if blind else []
        told |= {id(job): Found(job.entry, progress) for job, progress in zip(blind, steps, strict=True)}
        words = kubernetes.reasons([job.entry for job in mute], seconds=seconds) if mute else []
        for job, reason in zip(mute, words, strict=True):
            told[id(job)] = replace(job, entry=replace(job.entry, reason=reason or job.entry.reason))
    return [told.get(id(job), job) for job in found]


def find_one(word: str, target: str | None, *, whole: bool = False) -> Found:
    """Return the one job that ``word`` names, the live one where several have the name. Errors: as :func:`find`.

    With ``whole`` the tasks of one Slurm array are one job, under the array's id.
    """
    found = find(word, target, ask=False)
    live = [job for job in found if job.entry.state in ("running", "pending")] or found[:1]
    arrays = {(job.entry.target, job.entry.id.partition("_")[0]) for job in live}
    if whole and len(arrays) == 1 and "_" in live[0].entry.id and word != live[0].entry.id:
        first = live[0]
        return replace(first, entry=replace(first.entry, id=first.entry.id.partition("_")[0]))
    if len(live) > 1:
        ids = ", ".join(f"{job.entry.target} {job.entry.id}" for job in live)
        raise UsageError(f"{word!r} names {len(live)} jobs ({ids}): give the id")
    return live[0]


def _entries(targets: Sequence[str], *, required: bool) -> list[Entry]:
    found: list[Entry] = []
    for name in targets:
        module = backend(name)
        if not module.available():
            if required:
                raise EnvironmentFault(f"{name}: its command line tools are not on this machine")
            continue
        try:
            found += module.entries()
        except QwenJobError:
            # Tools that are installed but lead to no cluster only matter when that cluster was asked for.
            if required:
                raise
    return found


def _forgotten(item: Submission) -> Entry:
    return Entry(item.target, item.id, item.name, GONE, run=item.run)


def _with_run(entry: Entry, runs: dict[tuple[str, str], str]) -> Entry:
    run = runs.get((entry.target, entry.id), "")
    return Entry(**{**vars(entry), "run": run})


def _named(entry: Entry, word: str) -> bool:
    if word in (entry.id, entry.name) or entry.id.startswith(f"{word}_"):
        return True
    return bool(entry.run) and str(Path(word).resolve()) == str(Path(entry.run).resolve())
