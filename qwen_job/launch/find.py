"""From what the user typed (a name, an id, a run's folder, nothing) to jobs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from qwen_job.errors import EnvironmentFault, QwenJobError, UsageError
from qwen_job.launch.backend import GONE, TARGETS, UNKNOWN, Entry, backend
from qwen_job.launch.index import Submission, submissions
from qwen_job.run.progress import Progress, progress_of
from qwen_job.run.reading import there

# In a list of many jobs that many are asked, and so many seconds; a job that was named is waited for.
_MOST_ASKED, _PATIENCE, _PATIENCE_FOR_ONE = 16, 1.5, 10.0
# So many of the newest jobs are looked at, where only their folders can tell.
_MOST_READ = 100
_REMEMBERED_SECONDS = 31 * 86400
# States of a job that is on its nodes.
_AT_WORK = ("running", "completing", "configuring", "suspended", "stopped", "signaling", "stage_out")


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
    cannot be asked, the folders of its jobs tell which of them go on. Another user's job is named by its id or its
    run's folder, and by its name where no job of one's own has it.

    Raises:
        EnvironmentFault: when the target's tools are not here, or the folder may not be read.
        UsageError: when nothing matches.
    """
    if word is not None and not word.strip():
        raise UsageError("JOB is empty: give a job's name, its id or its run's folder (is a shell variable unset?)")
    past = [item for item in submissions() if target in (None, item.target)]
    only = _only(word) if word and not target else None
    if word and only and backend(only).available():
        jobs, unasked = _known(word, [only], [item for item in past if item.target == only], only, old)
        if jobs:
            return _seen(jobs, unasked, word, old, ask)
    jobs, unasked = _known(word, [target] if target else TARGETS, past, target, old)
    if word and not jobs:
        jobs = _of_folder(word, unasked)
        if not jobs and not unasked:
            raise UsageError(
                f"no job {word!r}: give a job's name, its id or its run's folder; 'qwen-job status --all' lists"
            )
    return _seen(jobs, unasked, word, old, ask)


def _only(word: str) -> str | None:
    """Return the only target whose ids look like ``word``, so that no other queue is waited for."""
    if re.fullmatch(r"\d+(_(\d+|\[[\d,-]+\]))?(@\S+)?", word):
        return "slurm"
    return "kubernetes" if re.fullmatch(r"[a-z0-9-]+/[a-z0-9.-]+", word) and not os.path.lexists(word) else None


def _known(
    word: str | None, targets: Sequence[str], past: list[Submission], named: str | None, old: bool
) -> tuple[list[Entry], dict[str, QwenJobError]]:
    """Return the jobs of the queues and of the user's list that ``word`` names, and the queues that gave no answer."""
    asked = _entries(targets, past, named=named)
    unasked = asked.silent
    known = {(_queue(entry), entry.id): entry for entry in asked.entries}
    arrays = {(_queue(entry), entry.id.partition("_")[0]) for entry in asked.entries}
    for item in past if word or old else [item for item in past if _queue(item) in unasked][:_MOST_READ]:
        if (_queue(item), item.id) not in arrays:
            state = UNKNOWN if _queue(item) in unasked else GONE
            known.setdefault((_queue(item), item.id), _forgotten(item, state))
    runs = {(_queue(item), item.id): item.run for item in past}
    jobs = [
        entry if entry.run else replace(entry, run=runs.get((_queue(entry), entry.id.partition("_")[0]), ""))
        for entry in known.values()
    ]
    if not word:
        return jobs, unasked
    wanted = _wanted(word)
    # Only where the user's own jobs have no such name, id or folder.
    jobs = [entry for entry in jobs if wanted(entry)] or [entry for entry in asked.others if wanted(entry)]
    silent = {_queue(entry) for entry in jobs if entry.state == UNKNOWN}
    return jobs, {name: error for name, error in unasked.items() if not jobs or name in silent}


def _of_folder(word: str, unasked: dict[str, QwenJobError]) -> list[Entry]:
    """Return what a run's folder, or the job.yaml beside us, says of a job that no queue and no list knows."""
    from qwen_job.run.owner import check_readable, owner_of

    check_readable(word)
    run = os.path.realpath(word)
    owner = owner_of(run)
    if not owner.target and not there(Path(run, "train.yaml")):
        run = _run_of_job_file(word) if unasked else ""
        return [Entry("", "", word, UNKNOWN, run=run, forgotten=True)] if run else []
    asked = not unasked and owner.target in TARGETS and backend(owner.target).available()
    state = GONE if asked or not owner.target else UNKNOWN
    known = Entry(owner.target, owner.id, Path(run).name, state, run=run, log=owner.log, user=owner.user)
    return [replace(known, forgotten=True)]


def _run_of_job_file(name: str) -> str:
    """Return the run's folder of the job called ``name`` in ./job.yaml, empty where it is another job or none."""
    if not there(Path("job.yaml")):
        return ""
    from qwen_job.job import load_job

    try:
        job = load_job(["job.yaml"])
    except QwenJobError:
        return ""
    return job.output if job.name == name and there(Path(job.output)) else ""


def _seen(jobs: list[Entry], unasked: dict[str, QwenJobError], word: str | None, old: bool, ask: bool) -> Look:
    """Return the jobs with what their folders, the accounting and the pods say of them."""
    found = [_with_folder(entry) for entry in _with_endings(jobs)]
    if not word and not old:
        found = [job for job in found if job.entry.state != UNKNOWN or job.progress.state not in ("", "done", "failed")]
    found = _asked(found, seconds=_PATIENCE_FOR_ONE if word else _PATIENCE) if ask else found
    return Look([_with_restarts(job) for job in found], unasked)


def _with_folder(entry: Entry) -> Found:
    """Return a job with its run's progress; its reason says what the queue does not know: that the run is complete."""
    from qwen_job.run.owner import forbids

    progress = progress_of(entry.run)
    if progress.state == "done" and entry.target == "slurm" and not entry.is_over and entry.state not in _AT_WORK:
        way = f"'qwen-job cancel {entry.shown_id}' takes it out of the queue"
        return Found(replace(entry, reason=f"the run is complete (done.json): nothing is left to do; {way}"), progress)
    if not progress.state and not entry.reason and (why := forbids(entry.run)):
        return Found(replace(entry, reason=f"{entry.run}: {why}"), progress)
    return Found(entry, progress)


def _with_endings(jobs: list[Entry]) -> list[Entry]:
    """Ask Slurm's accounting for the newest jobs that its queue has forgotten."""
    gone = [entry for entry in jobs if entry.target == "slurm" and entry.state == GONE and entry.id][:_MOST_READ]
    if not gone:
        return jobs
    from qwen_job.launch.slurm.accounting import endings

    told: dict[tuple[str, str], tuple[str, str]] = {}
    for cluster in {entry.cluster for entry in gone}:
        of_cluster = endings((entry.id for entry in gone if entry.cluster == cluster), cluster)
        told |= {(cluster, job): ending for job, ending in of_cluster.items()}
    ended = {id(entry): told[place] for entry in gone if (place := (entry.cluster, entry.id)) in told}
    return [
        replace(entry, state=ended[id(entry)][0], reason=ended[id(entry)][1]) if id(entry) in ended else entry
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
        from qwen_job.launch.kubernetes import backend as kubernetes

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


def live_in(folders: Sequence[str]) -> dict[str, Entry]:
    """Return real path -> the live Slurm job, anybody's, that trains in one of these folders.

    Its comment tells the folder, else our list, else what its script wrote into the folder. Nothing is returned where
    Slurm gives no answer: sbatch says what is wrong, and the job's own script looks again.
    """
    from qwen_job.render.slurm.evaluate import SUFFIX
    from qwen_job.run.owner import owner_of

    past = [item for item in submissions() if item.target == "slurm"]
    try:
        asked = _entries(["slurm"], past, named="slurm")
    except QwenJobError:
        return {}
    runs = {(item.cluster, item.id): item.run for item in past if not item.name.endswith(SUFFIX)}
    live = [entry for entry in (*asked.others, *asked.entries) if not entry.is_over]
    owners = {owner_of(folder).id: folder for folder in folders}
    found = {}
    for entry in live:
        array = entry.id.partition("_")[0]
        for run in (entry.run, runs.get((entry.cluster, array), ""), owners.get(entry.id, "")):
            if run:
                found[os.path.realpath(run)] = entry
                break
    return found


def _without_follow_ups(found: list[Found]) -> list[Found]:
    """Leave out the jobs that measure what another of them trains."""
    from qwen_job.render.slurm.evaluate import evaluate_name

    names = {job.entry.name for job in found}
    follow_ups = {evaluate_name(name) for name in names if evaluate_name(name) != name}
    return [job for job in found if job.entry.name not in follow_ups]


def _whole(jobs: list[Found], word: str) -> list[Found]:
    """Return one job for the tasks of each array, under the array's id, unless the task itself was named."""
    whole: dict[tuple[str, str], Found] = {}
    for job in jobs:
        named = job.entry.id if word in (job.entry.id, job.entry.shown_id) else job.entry.id.partition("_")[0]
        whole.setdefault((_queue(job.entry), named), replace(job, entry=replace(job.entry, id=named)))
    return list(whole.values())


def _ambiguous(jobs: list[Found], word: str) -> UsageError:
    ids = ", ".join(f"{job.entry.target} {job.entry.shown_id}" for job in jobs)
    return UsageError(f"{word!r} names {len(jobs)} jobs ({ids}): give the id")


class _Asked(NamedTuple):
    """The user's jobs, other users' jobs, and queue -> why it could not be asked, where that matters."""

    entries: list[Entry]
    others: list[Entry]
    silent: dict[str, QwenJobError]


def _entries(targets: Sequence[str], past: list[Submission], *, named: str | None) -> _Asked:
    """Ask the queues of ``targets``, and the other Slurm clusters that have had jobs of late.

    Without an answer matters a queue that was named or has had a job; else only where no queue answers at all: tools
    that are installed but lead to no cluster are no fault.

    Raises:
        EnvironmentFault: for a named target without its tools.
    """
    found, others, silent = list[Entry](), list[Entry](), dict[str, QwenJobError]()
    answered = False
    for name in targets:
        if not backend(name).available():
            if named:
                raise EnvironmentFault(f"{name}: its command line tools are not on this machine")
            continue
        for cluster in ("", *_clusters(past)) if name == "slurm" else ("",):
            try:
                mine, theirs = _mine(name, cluster)
                known = {(entry.cluster, entry.id) for entry in found}
                found += [entry for entry in mine if (entry.cluster, entry.id) not in known]
                others += theirs
                answered = answered or name != "local"
            except QwenJobError as error:
                silent[f"{name} {cluster}".strip()] = error
    used = {_queue(item) for item in past}
    matters = {queue: error for queue, error in silent.items() if queue.partition(" ")[0] == named or queue in used}
    return _Asked(found, others, matters or ({} if answered else silent))


def _clusters(past: list[Submission]) -> list[str]:
    """Return the clusters that jobs were sent to in the last month; one that is no more is not asked for ever."""
    begin = time.time() - _REMEMBERED_SECONDS
    return sorted({item.cluster for item in past if item.cluster and item.time > begin})


def _mine(target: str, cluster: str) -> tuple[list[Entry], list[Entry]]:
    if target != "slurm":
        return backend(target).entries(), []
    from qwen_job.launch.slurm.backend import everybodys, user

    jobs = everybodys(cluster)
    mine = [entry for entry in jobs if entry.user in (user(), "")]
    return mine, [entry for entry in jobs if entry.user not in (user(), "")]


def _queue(item: Entry | Submission) -> str:
    """Return which queue has the job: its target, and the cluster where Slurm has several."""
    return f"{item.target} {item.cluster}".strip()


def _forgotten(item: Submission, state: str) -> Entry:
    return Entry(item.target, item.id, item.name, state, run=item.run, forgotten=True, cluster=item.cluster)


def _wanted(word: str) -> Callable[[Entry], bool]:
    """Return the test whether a job has this name, id or folder."""
    from qwen_job.run.owner import owner_of

    folder = Path(os.path.realpath(word))
    owner = owner_of(folder)

    def fits(entry: Entry) -> bool:
        if word in (entry.id, entry.shown_id, entry.name) or entry.id.startswith(f"{word}_"):
            return True
        if owner.id and (owner.target, owner.id) == (entry.target, entry.id):
            return True
        if not entry.run:
            return False
        run = Path(os.path.realpath(entry.run))
        return folder == run or (folder == run.parent and there(folder / "sweep.json"))

    return fits
