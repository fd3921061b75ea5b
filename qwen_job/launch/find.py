"""From what the user typed (a name, an id, a run's folder, nothing) to jobs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_job.errors import EnvironmentFault, QwenJobError, UsageError
from qwen_job.launch.backend import GONE, TARGETS, UNKNOWN, Entry, backend
from qwen_job.launch.index import Submission, submissions
from qwen_job.launch.progress import Progress, progress_of

# In a list of many jobs that many are asked, and so many seconds; a job that was named is waited for.
_MOST_ASKED, _PATIENCE, _PATIENCE_FOR_ONE = 16, 1.5, 10.0
# So many of the newest jobs are looked at, where only their folders can tell.
_MOST_READ = 100


@dataclass(frozen=True)
class Found:
    """One job with its run's progress."""

    entry: Entry
    progress: Progress


@dataclass(frozen=True)
class Look:
    """Jobs, and target -> why its queue could not be asked; the state of its jobs is then :data:`UNKNOWN`."""

    found: list[Found]
    unasked: dict[str, QwenJobError]

    def check(self) -> None:
        """Errors: :class:`EnvironmentFault` where a queue could not be asked."""
        if self.unasked:
            lines = [f"{target}: its queue could not be asked: {error}" for target, error in self.unasked.items()]
            raise EnvironmentFault("\n".join(lines))


def find(word: str | None, target: str | None, *, old: bool = False, ask: bool = True) -> list[Found]:
    """Return what :func:`look` finds. Errors: as there; :class:`EnvironmentFault` where a queue could not be asked."""
    looked = look(word, target, old=old, ask=ask)
    looked.check()
    return looked.found


def look(word: str | None, target: str | None, *, old: bool = False, ask: bool = True) -> Look:
    """Return the jobs that ``word`` names, or all that a queue knows (``old``: also those it has forgotten).

    With ``ask`` the pods are asked for the progress of runs whose folders this machine does not see. Where a queue
    cannot be asked, the folders of its jobs tell which of them go on.

    Errors: :class:`EnvironmentFault` when the target's tools are not here; :class:`UsageError` when nothing matches.
    """
    if word is not None and not word.strip():
        raise UsageError("JOB is empty: give a job's name, its id or its run's folder (is a shell variable unset?)")
    past = [item for item in submissions() if target in (None, item.target)]
    entries, unasked = _entries([target] if target else TARGETS, {item.target for item in past}, named=target)
    known = {(entry.target, entry.id): entry for entry in entries}
    arrays = {(entry.target, entry.id.partition("_")[0]) for entry in entries}
    for item in past if word or old else [item for item in past if item.target in unasked][:_MOST_READ]:
        if (item.target, item.id) not in arrays:
            state = UNKNOWN if item.target in unasked else GONE
            known.setdefault((item.target, item.id), _forgotten(item, state))
    runs = {(item.target, item.id): item.run for item in past}
    jobs = [
        entry if entry.run else replace(entry, run=runs.get((entry.target, entry.id), "")) for entry in known.values()
    ]
    if word:
        jobs = [entry for entry in jobs if _named(entry, word)]
        if not jobs and Path(word, "train.yaml").exists():
            jobs = [Entry("", "", Path(word).name, GONE, run=str(Path(word).resolve()), forgotten=True)]
        unasked = {name: error for name, error in unasked.items() if not jobs or name in {item.target for item in past}}
        if not jobs and not unasked:
            raise UsageError(
                f"no job {word!r}: give a job's name, its id or its run's folder; 'qwen-job status --all' lists"
            )
    found = [Found(entry, progress_of(entry.run)) for entry in _with_endings(jobs)]
    if not word and not old:
        found = [job for job in found if job.entry.state != UNKNOWN or job.progress.state not in ("", "done", "failed")]
    found = _asked(found, seconds=_PATIENCE_FOR_ONE if word else _PATIENCE) if ask else found
    return Look([_with_restarts(job) for job in found], unasked)


def _with_endings(jobs: list[Entry]) -> list[Entry]:
    """Ask Slurm's accounting for the newest jobs that its queue has forgotten."""
    gone = [entry.id for entry in jobs if entry.target == "slurm" and entry.state == GONE][:_MOST_READ]
    if not gone:
        return jobs
    from qwen_job.launch.slurm_accounting import endings

    told = endings(gone)
    return [
        replace(entry, state=told[entry.id][0], reason=told[entry.id][1])
        if entry.forgotten and entry.target == "slurm" and entry.id in told
        else entry
        for entry in jobs
    ]


def _with_restarts(job: Found) -> Found:
    """An operator that makes pods anew does not count them; the run does."""
    attempt = job.progress.attempt or 0
    if job.entry.target != "kubernetes" or attempt <= job.entry.restarts:
        return job
    return replace(job, entry=replace(job.entry, restarts=attempt))


def _asked(found: list[Found], *, seconds: float) -> list[Found]:
    """Ask the newest running jobs whose folders this machine does not see, and why the newest others wait or failed."""
    ours = [job for job in found if job.entry.target == "kubernetes"]
    blind = [job for job in ours if job.entry.state == "running" and not job.progress.state][:_MOST_ASKED]
    told: dict[int, Found] = {}
    if ours:
        from qwen_job.launch import kubernetes

        mute = [job for job in ours if kubernetes.unexplained(job.entry)][:_MOST_ASKED]
        steps = kubernetes.progress([job.entry for job in blind], seconds=seconds) if blind else []
        told |= {id(job): Found(job.entry, progress) for job, progress in zip(blind, steps, strict=True)}
        words = kubernetes.reasons([job.entry for job in mute], seconds=seconds) if mute else []
        for job, reason in zip(mute, words, strict=True):
            told[id(job)] = replace(job, entry=replace(job.entry, reason=reason or job.entry.reason))
    return [told.get(id(job), job) for job in found]


def find_one(word: str, target: str | None, *, whole: bool = False, asked: bool = True) -> Found:
    """Return the one job that ``word`` names, the live one where several have the name. Errors: as :func:`find`.

    With ``whole`` the tasks of one Slurm array are one job, under the array's id. Of a training and the job that
    measures it in the same folder it is the training. Without ``asked`` a queue that gives no answer is no error.
    """
    looked = look(word, target, ask=False)
    if asked or not looked.found:
        looked.check()
    found = _without_follow_ups(looked.found)
    live = [job for job in found if job.entry.state in ("running", "pending")] or found[:1]
    if whole:
        live = _whole(live, word)
    if len(live) > 1:
        raise _ambiguous(live, word)
    return live[0]


def find_live(word: str, target: str | None) -> list[Found]:
    """Return the job that ``word`` names, an array as one, and before it what waits to measure it; none that is over.

    Errors: as :func:`find`; :class:`UsageError` for several trainings.
    """
    live = [job for job in find(word, target, ask=False) if not job.entry.is_over]
    trainings = _whole(_without_follow_ups(live), word)
    if len(trainings) > 1:
        raise _ambiguous(trainings, word)
    names = {job.entry.name for job in trainings}
    return [*_whole([job for job in live if job.entry.name not in names], word), *trainings]


def _without_follow_ups(found: list[Found]) -> list[Found]:
    """Leave out the jobs that measure what another of them trains."""
    from qwen_job.render.slurm_evaluate import evaluate_name

    names = {job.entry.name for job in found}
    follow_ups = {evaluate_name(name) for name in names if evaluate_name(name) != name}
    return [job for job in found if job.entry.name not in follow_ups]


def _whole(jobs: list[Found], word: str) -> list[Found]:
    """Return one job for the tasks of each array, under the array's id, unless the task itself was named."""
    whole: dict[tuple[str, str], Found] = {}
    for job in jobs:
        named = job.entry.id if job.entry.id == word else job.entry.id.partition("_")[0]
        whole.setdefault((job.entry.target, named), replace(job, entry=replace(job.entry, id=named)))
    return list(whole.values())


def _ambiguous(jobs: list[Found], word: str) -> UsageError:
    ids = ", ".join(f"{job.entry.target} {job.entry.id}" for job in jobs)
    return UsageError(f"{word!r} names {len(jobs)} jobs ({ids}): give the id")


def _entries(
    targets: Sequence[str], used: Container[str], *, named: str | None
) -> tuple[list[Entry], dict[str, QwenJobError]]:
    """Return the jobs in the queues, and target -> error of those that could not be asked, where that matters.

    It matters where the target was named or has had a job, else only where no queue answers at all: tools that are
    installed but lead to no cluster are no fault.

    Errors: :class:`EnvironmentFault` for a named target without its tools.
    """
    found: list[Entry] = []
    silent: dict[str, QwenJobError] = {}
    answered = False
    for name in targets:
        module = backend(name)
        if not module.available():
            if named:
                raise EnvironmentFault(f"{name}: its command line tools are not on this machine")
            continue
        try:
            found += module.entries()
            answered = answered or name != "local"
        except QwenJobError as error:
            silent[name] = error
    matters = {name: error for name, error in silent.items() if name == named or name in used}
    return found, matters or ({} if answered else silent)


def _forgotten(item: Submission, state: str) -> Entry:
    return Entry(item.target, item.id, item.name, state, run=item.run, forgotten=True)


def _named(entry: Entry, word: str) -> bool:
    if word in (entry.id, entry.name) or entry.id.startswith(f"{word}_"):
        return True
    if not entry.run:
        return False
    folder, run = Path(word).resolve(), Path(entry.run).resolve()
    return folder == run or (folder == run.parent and (folder / "sweep.json").exists())
