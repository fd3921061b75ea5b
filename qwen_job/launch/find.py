"""Find jobs by what the user typed: a name, an id, a run folder or nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_job.errors import EnvironmentFault, QwenJobError, UsageError
from qwen_job.job import load_job
from qwen_job.launch.backend import GONE, NOT_STARTED, TARGETS, UNKNOWN, Entry, backend
from qwen_job.launch.index import Submission, submissions
from qwen_job.launch.queues import ask_queues, queue_of, with_endings, with_past
from qwen_job.render.slurm.sbatch_options import EVALUATE_SUFFIX, evaluate_name
from qwen_job.run.folder import RunFolder
from qwen_job.run.owner import check_readable, forbids, owner_of
from qwen_job.run.progress import Progress, progress_of
from qwen_job.run.reading import there
from qwen_job.run.sweep_index import sweep_runs

# In a list of many jobs this many are asked for details, for this many seconds; a named job gets more time.
_MOST_ASKED, _PATIENCE, _PATIENCE_FOR_ONE = 16, 1.5, 10.0
# States of a job that is on its nodes.
_AT_WORK = ("running", "completing", "configuring", "suspended", "stopped", "signaling", "stage_out")


@dataclass(frozen=True)
class Found:
    """One job with the progress of its run."""

    entry: Entry
    progress: Progress


@dataclass(frozen=True)
class Look:
    """Jobs, and queue -> why it is unreachable; the state of its jobs is then :data:`UNKNOWN`.

    ``unknown`` is the word that no job was found for, so that only those queues could know it.
    """

    found: list[Found]
    unasked: dict[str, QwenJobError]
    unknown: str = ""

    def check(self) -> None:
        """Check that all queues answered.

        Raises:
            EnvironmentFault: names every queue that did not.
        """
        if self.unasked:
            lines = [f"{target}: the queue is unreachable: {error}" for target, error in self.unasked.items()]
            if self.unknown:
                lines.insert(0, f"{_no_job(self.unknown)}; a queue that might know it did not answer")
            raise EnvironmentFault("\n".join(lines))


def find(word: str | None, target: str | None, *, old: bool = False, ask: bool = True) -> list[Found]:
    """Return the jobs that :func:`look` finds.

    Raises:
        EnvironmentFault: when a queue is unreachable, and as :func:`look`.
        UsageError: when nothing matches.
    """
    looked = look(word, target, old=old, ask=ask)
    looked.check()
    return looked.found


def look(word: str | None, target: str | None, *, old: bool = False, ask: bool = True) -> Look:
    """Return the jobs that ``word`` names, or all in the queues (``old``: also those that have left them).

    With ``ask`` the pods are asked for the progress of runs whose folders this machine does not see. Where a queue is
    unreachable, the run folders tell which of its jobs are running. Another user's job is found by its id or its run
    folder, and by its name if none of the user's own jobs has it.

    Raises:
        EnvironmentFault: when the target's tools are missing, or the folder is not readable.
        UsageError: when nothing matches.
    """
    if word is not None and not word.strip():
        raise UsageError("JOB is empty: give a job's name, its ID or its run folder (is a shell variable unset?)")
    past = [item for item in submissions() if target in (None, item.target)]
    if word and not target and (here := _without_queue(word, past)):
        return Look(_with_details(here, word, old=old, ask=False), {})
    jobs, unasked = list[Entry](), dict[str, QwenJobError]()
    only = _only(word) if word and not target else None
    if only and backend(only).available():
        jobs, unasked = _known(word, [only], [item for item in past if item.target == only], only, old)
    if not jobs:
        jobs, unasked = _known(word, [target] if target else TARGETS, past, target, old)
    if word and not jobs:
        jobs = _of_folder(word, unasked)
        if not jobs and not unasked:
            raise UsageError(f"{_no_job(word)}; 'qwen-job status --all' lists them")
    return Look(_with_details(jobs, word, old=old, ask=ask), unasked, "" if jobs or not word else word)


def _no_job(word: str) -> str:
    return f"no job {word!r}: give a job's name, its ID or its run folder"


def _without_queue(word: str, past: Sequence[Submission]) -> list[Entry]:
    """Return the run in a folder, or the runs of the sweep in it, if no queue has had them: local or over ssh."""
    folder = Path(os.path.realpath(word))
    if any(folder in (Path(item.run), Path(item.run).parent) for item in past if item.run):
        return []
    check_readable(word)
    runs = [folder / run.folder for run in sweep_runs(folder) or ()] or [folder]
    started = [run for run in runs if there(RunFolder(run).train)]
    if not started or any(owner_of(run).target != "local" for run in started):
        return []
    return [_local(run, GONE if run in started else NOT_STARTED) for run in runs]


def _local(run: Path, state: str) -> Entry:
    owner = owner_of(run)
    return Entry("local", "", run.name, state, run=str(run), log=owner.log, user=owner.user, forgotten=True)


def _only(word: str) -> str | None:
    """Return the only target whose ids look like ``word``, so that no other queue has to answer."""
    if re.fullmatch(r"\d+(_(\d+|\[[\d,-]+\]))?(@\S+)?", word):
        return "slurm"
    return "kubernetes" if re.fullmatch(r"[a-z0-9-]+/[a-z0-9.-]+", word) and not os.path.lexists(word) else None


def _known(
    word: str | None, targets: Sequence[str], past: list[Submission], named: str | None, old: bool
) -> tuple[list[Entry], dict[str, QwenJobError]]:
    """Return the jobs in the queues and on the user's list that ``word`` names, and the queues that did not answer."""
    answers = ask_queues(targets, past, named=named)
    jobs = with_past(answers, past, old=old or bool(word))
    if not word:
        return jobs, answers.silent
    is_wanted = _wanted(word)
    # Other users' jobs only where none of the user's own has this name, id or folder.
    wanted = [entry for entry in jobs if is_wanted(entry)] or [entry for entry in answers.others if is_wanted(entry)]
    if not wanted:
        return [], answers.silent
    unknown = {queue_of(entry) for entry in wanted if entry.state == UNKNOWN}
    return wanted, {name: error for name, error in answers.silent.items() if name in unknown}


def _wanted(word: str) -> Callable[[Entry], bool]:
    """Return the test whether a job has this name, id or folder."""
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
        return folder == run or (folder == run.parent and there(RunFolder(folder).sweep))

    return fits


def _of_folder(word: str, unasked: dict[str, QwenJobError]) -> list[Entry]:
    """Return what a run folder, or ./job.yaml, says about a job that is in no queue and on no list."""
    check_readable(word)
    run = os.path.realpath(word)
    owner = owner_of(run)
    if not owner.target and not there(RunFolder(Path(run)).train):
        run = _run_of_job_file(word) if unasked else ""
        return [Entry("", "", word, UNKNOWN, run=run, forgotten=True)] if run else []
    asked = not unasked and owner.target in TARGETS and backend(owner.target).available()
    state = GONE if asked or not owner.target else UNKNOWN
    known = Entry(owner.target, owner.id, Path(run).name, state, run=run, log=owner.log, user=owner.user)
    return [replace(known, forgotten=True)]


def _run_of_job_file(name: str) -> str:
    """Return the run folder of the job called ``name`` in ./job.yaml; empty for another job or none."""
    if not there(Path("job.yaml")):
        return ""
    try:
        job = load_job(["job.yaml"])
    except QwenJobError:
        return ""
    return job.output if job.name == name and there(Path(job.output)) else ""


def _with_details(jobs: list[Entry], word: str | None, *, old: bool, ask: bool) -> list[Found]:
    """Return the jobs with what their folders, accounting and their pods say."""
    found = [_with_folder(entry) for entry in with_endings(jobs)]
    if not word and not old:
        found = [job for job in found if job.entry.state != UNKNOWN or job.progress.state not in ("", "done", "failed")]
    if ask:
        found = _with_answers(found, seconds=_PATIENCE_FOR_ONE if word else _PATIENCE)
    return [_with_restarts(job) for job in found]


def _with_folder(entry: Entry) -> Found:
    """Return a job with the progress of its run, and a reason where the queue does not know that the run is done."""
    progress = progress_of(entry.run)
    if progress.state == "done" and entry.target == "slurm" and not entry.is_over and entry.state not in _AT_WORK:
        reason = f"the run is complete (done.json); 'qwen-job cancel {entry.shown_id}' removes the job from the queue"
        return Found(replace(entry, reason=reason), progress)
    if not progress.state and not entry.reason and (why := forbids(entry.run)):
        return Found(replace(entry, reason=f"{entry.run}: {why}"), progress)
    return Found(entry, progress)


def _with_answers(found: list[Found], *, seconds: float) -> list[Found]:
    """Ask the targets about the newest jobs: running ones for progress, others for why they wait or failed.

    Only runs whose folders this machine does not see are asked for progress.
    """
    result = list(found)
    for target in {job.entry.target for job in found}.intersection(TARGETS):
        queue = backend(target)
        ours = [index for index, job in enumerate(found) if job.entry.target == target]
        blind = [i for i in ours if found[i].entry.state == "running" and not found[i].progress.state][:_MOST_ASKED]
        for index, progress in zip(blind, queue.progress([found[i].entry for i in blind], seconds), strict=True):
            if progress != Progress():
                result[index] = replace(found[index], progress=progress)
        mute = [i for i in ours if queue.is_unexplained(found[i].entry)][:_MOST_ASKED]
        for index, reason in zip(mute, queue.reasons([found[i].entry for i in mute], seconds), strict=True):
            if reason:
                result[index] = replace(found[index], entry=replace(found[index].entry, reason=reason))
    return result


def _with_restarts(job: Found) -> Found:
    """An operator that recreates pods does not count restarts, but the run does."""
    attempt = (job.progress.attempt or 0) - (job.progress.in_place or 0)
    if job.entry.target != "kubernetes" or attempt <= job.entry.restarts:
        return job
    return replace(job, entry=replace(job.entry, restarts=attempt))


def find_one(word: str, target: str | None, *, whole: bool = False, asked: bool = True) -> Found:
    """Return the one job that ``word`` names, the live one if several have the name.

    With ``whole`` the tasks of a Slurm array count as one job, under the array's id. Of a training and the job that
    evaluates it in the same folder it is the training. Without ``asked`` an unreachable queue is no error.

    Raises:
        EnvironmentFault: as :func:`find`.
        UsageError: when no job or several match.
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
    """Return the job that ``word`` names, an array as one, preceded by the job that waits to evaluate it.

    Jobs that have ended are left out.

    Raises:
        EnvironmentFault: as :func:`find`.
        UsageError: when nothing or several trainings match.
    """
    live = [job for job in find(word, target, ask=False) if not job.entry.is_over]
    trainings = _whole(_without_follow_ups(live), word)
    if len(trainings) > 1:
        raise _ambiguous(trainings, word)
    names = {job.entry.name for job in trainings}
    return [*_whole([job for job in live if job.entry.name not in names], word), *trainings]


def live_in(folders: Sequence[str]) -> dict[str, Entry]:
    """Return real path -> the live Slurm job, anybody's, that trains in one of these folders.

    A job's folder comes from its comment, else from our list, else from what its script wrote into the folder. The
    result is empty where Slurm does not answer: sbatch will report why, and the job's own script checks again.
    """
    past = [item for item in submissions() if item.target == "slurm"]
    try:
        answers = ask_queues(["slurm"], past, named="slurm")
    except QwenJobError:
        return {}
    runs = {(item.cluster, item.id): item.run for item in past if not item.name.endswith(EVALUATE_SUFFIX)}
    owners = {owner_of(folder).id: folder for folder in folders}
    found = {}
    for entry in (*answers.others, *answers.entries):
        array = entry.id.partition("_")[0]
        run = entry.run or runs.get((entry.cluster, array), "") or owners.get(entry.id, "")
        if run and not entry.is_over:
            found[os.path.realpath(run)] = entry
    return found


def _without_follow_ups(found: list[Found]) -> list[Found]:
    """Leave out the jobs that evaluate what another of them trains."""
    names = {job.entry.name for job in found}
    follow_ups = {evaluate_name(name) for name in names if evaluate_name(name) != name}
    return [job for job in found if job.entry.name not in follow_ups]


def _whole(jobs: list[Found], word: str) -> list[Found]:
    """Return one job for the tasks of each array, under the array's id, unless the task itself was named."""
    whole: dict[tuple[str, str], Found] = {}
    for job in jobs:
        named = job.entry.id if word in (job.entry.id, job.entry.shown_id) else job.entry.id.partition("_")[0]
        whole.setdefault((queue_of(job.entry), named), replace(job, entry=replace(job.entry, id=named)))
    return list(whole.values())


def _ambiguous(jobs: list[Found], word: str) -> UsageError:
    ids = ", ".join(f"{job.entry.target} {job.entry.shown_id or job.entry.run}" for job in jobs)
    which = "the ID" if all(job.entry.id for job in jobs) else "the run folder"
    return UsageError(f"{word!r} names {len(jobs)} jobs ({ids}): give {which}")
