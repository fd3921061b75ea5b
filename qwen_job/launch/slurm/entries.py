"""Read the JSON of squeue and sacct, in the shapes of all versions from 21.08 on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.errors import RETRYABLE_FROM, EnvironmentFault, table
from qwen_job.launch.backend import Entry
from qwen_job.launch.slurm.survey import by_cluster
from qwen_job.render.slurm.sbatch_options import COMMENT
from qwen_job.run.sweep_index import sweep_runs

_NO_TASK = 0xFFFFFFFE
# Slurm reports signal 53 for a job whose script could not start, most often because its log could not be opened.
_NO_LAUNCH = 53
_AGAIN = "submit again: it resumes from the newest checkpoint"
# Final state of a job -> the message; an empty one is replaced by the meaning of the exit code.
_ENDS = {
    "completed": "",
    "cancelled": "",
    "failed": "",
    "out_of_memory": "out of memory: request more (slurm.memory), then submit again",
    "timeout": f"reached its time limit before it could save; {_AGAIN}",
    "node_fail": f"a node failed; {_AGAIN}",
    "boot_fail": f"a node did not boot; {_AGAIN}",
    "preempted": f"preempted and not requeued; {_AGAIN}",
    "deadline": f"its deadline passed; {_AGAIN}",
    "revoked": "another cluster of the federation runs it",
}
_KNOWN = {
    "Resources": "waiting for free nodes",
    "Priority": "waiting behind jobs of higher priority",
    "BeginTime": "waiting for its start time (a requeued job is delayed briefly)",
    "Dependency": "waiting for another job",
    "DependencyNeverSatisfied": "depends on a job that failed, so Slurm will cancel it",
    "JobArrayTaskLimit": "waiting for running tasks of its array",
    "JobHeldUser": "held; 'scontrol release' releases it",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held: reached this cluster's requeue limit; 'scontrol release' releases it",
    "PartitionTimeLimit": "requests more time than the partition allows (slurm.time)",
    "ReqNodeNotAvail": "the nodes it needs are down or reserved",
    "QOSMaxJobsPerUserLimit": "you have reached the limit of running jobs",
}


def jobs_of(text: str) -> list[Entry]:
    """Return all users' jobs from the output of ``squeue --json``: newest first, tasks of an array by index.

    Raises:
        EnvironmentFault: the output has another shape, or squeue reports that no controller answered.
    """
    return [entry for cluster, answer in by_cluster(text) for entry in _of_cluster(cluster, answer)]


def _of_cluster(cluster: str, text: str) -> list[Entry]:
    try:
        answer = json.loads(text)
        jobs = answer["jobs"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unexpected(error) from None
    if not jobs and answer.get("errors"):
        # Without a controller, squeue --json still exits with 0 and reports the error in its output.
        said = "; ".join(str(error.get("description") or error.get("error")) for error in answer["errors"])
        raise EnvironmentFault(f"squeue cannot reach a cluster: {said}; is slurmctld up, and is this a login node?")
    try:
        return [replace(_entry(job), cluster=cluster) for job in sorted(jobs, key=_order)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _unexpected(error) from None


def _unexpected(error: Exception) -> EnvironmentFault:
    return EnvironmentFault(f"squeue --json: unexpected output ({error}); Slurm 21.08 or newer is needed")


def endings_of(text: str) -> dict[str, tuple[str, str]]:
    """Return id -> (state, reason) from the output of ``sacct --json``, or nothing if it has another shape.

    The tasks of an array count as one job, which failed if any of them failed.
    """
    try:
        jobs = json.loads(text)["jobs"]
        states = [(job, _accounted_state(job)) for job in jobs]
        found = [(_accounted_id(job), state, ended_as(state, job.get("exit_code"))) for job, state in states]
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    found.sort(key=lambda one: one[1] != "completed")
    return {job: (state, reason) for job, state, reason in found}


def _accounted_id(job: dict[str, Any]) -> str:
    array = (job.get("array") or {}).get("job_id")
    if isinstance(array, dict):
        array = array.get("number")
    return str(array or job["job_id"])


def _accounted_state(job: dict[str, Any]) -> str:
    state = job["state"]["current"]
    return str(state[0] if isinstance(state, list) else state).lower()


def _order(job: dict[str, Any]) -> tuple[int, int]:
    """Sort newest first, and tasks by index; waiting tasks, which share one record, by their first."""
    waiting = _text(job.get("array_task_string"))
    task = int(found[0]) if (found := re.search(r"\d+", waiting)) else _number(job.get("array_task_id"))
    return -(_number(job.get("array_job_id")) or _number(job.get("job_id"))), task


def _entry(job: dict[str, Any]) -> Entry:
    comment = _text(job.get("comment"))
    job_id, task = _array_id(job)
    state = _text(job.get("job_state")).lower()
    log = _log(job, job_id.partition("_")[0], task)
    return Entry(
        target="slurm",
        id=job_id,
        name=_text(job.get("name")),
        state=state,
        reason=_reason(state, job, log),
        run=_run_of(comment.removeprefix(COMMENT), task) if comment.startswith(COMMENT) else "",
        log=log,
        nodes=_text(job.get("nodes")),
        restarts=_number(job.get("restart_cnt")),
        user=_text(job.get("user_name")),
    )


def _log(job: dict[str, Any], array: str, task: int | None) -> str:
    """Return the path of the job's output, with sbatch's patterns (%x, %4j) filled in as Slurm does it."""
    marks = {
        "x": _text(job.get("name")),
        "j": str(_number(job.get("job_id"))),
        "A": array,
        "a": "" if task is None else str(task),
        "u": _text(job.get("user_name")),
        "%": "%",
    }

    def filled(found: re.Match[str]) -> str:
        value = marks.get(found[2])
        if value is None:
            return found[0]
        return value.zfill(min(int(found[1]), 10)) if found[1] and value.isdecimal() else value

    return re.sub(r"%(\d*)([a-zA-Z%])", filled, _text(job.get("standard_output")))


def _array_id(job: dict[str, Any]) -> tuple[str, int | None]:
    """Return the ID that scancel takes (12, 12_3, 12_[4-7]) and the task's index, if it is a task."""
    array = _number(job.get("array_job_id"))
    if not array:
        return str(_number(job.get("job_id"))), None
    waiting = _text(job.get("array_task_string")).partition("%")[0]
    if waiting:
        return f"{array}_[{waiting}]", None
    given = job.get("array_task_id")
    task = _number(given)
    # Tasks cancelled before they started share one record, whose index is unset or Slurm's "none" (2^32 - 2).
    if given is None or (isinstance(given, dict) and not given.get("set", True)) or task >= _NO_TASK:
        return str(array), None
    return f"{array}_{task}", task


def _run_of(folder: str, task: int | None) -> str:
    """Return the run folder of a task from the sweep's index, or the job's own folder without one."""
    if task is None:
        return folder
    runs = sweep_runs(Path(folder)) if folder else None
    return str(Path(folder, runs[task].folder)) if runs and task < len(runs) else folder


def _reason(state: str, job: dict[str, Any], log: str) -> str:
    """Return why a job is waiting, or how it ended; an ended job's reason for waiting is outdated."""
    reason = _text(job.get("state_reason"))
    said = f"{reason} {_text(job.get('state_description'))}".lower().replace("_", " ")
    never_started = (
        "joblaunchfailure" in said or "launch failed" in said or _ended(job.get("exit_code"))[1] == _NO_LAUNCH
    )
    if never_started and state in ("failed", "pending", "requeue_hold", "special_exit"):
        held = "; held since" if state != "failed" else ""
        return f"{cannot_launch(log)} (JobLaunchFailure{held})"
    if state in _ENDS:
        return ended_as(state, job.get("exit_code"))
    return "" if reason in ("None", "") else _explain(reason, job)


def cannot_launch(log: str) -> str:
    """Return what to do about a job whose script could not start; ``log`` is its log file, if known."""
    where = f"its log {log} cannot be opened there" if log else "most often because its log cannot be opened there"
    suggestion = "set slurm.log_dir to a folder that the nodes see, or check slurmd's log"
    return f"the job could not start on its node: {where}; {suggestion}"


def ended_as(state: str, exit_code: Any) -> str:
    """Return how a job in this final ``state`` ended, and what to do next."""
    return _ENDS.get(state) or ending(exit_code)


def ending(exit_code: Any) -> str:
    """Return how a job ended, from a wait status or the newer form {"return_code": 4, "signal": ...}."""
    code, number = _ended(exit_code)
    if number == _NO_LAUNCH:
        return f"{cannot_launch('')} (signal {number})"
    if number:
        return f"signal {number}"
    meaning = next((words for known, _, words in table() if known == code), "")
    said = ": ".join(filter(None, (f"exit code {code}", meaning))) if code else ""
    return f"{said}; {_AGAIN}" if code >= RETRYABLE_FROM else said


def _ended(exit_code: Any) -> tuple[int, int]:
    """Return a job's exit code and its signal."""
    if isinstance(exit_code, dict):
        signal = exit_code.get("signal") or {}
        return _number(exit_code.get("return_code")), _number(signal.get("id", signal.get("signal_id")))
    return _number(exit_code) >> 8, _number(exit_code) & 127


def _explain(reason: str, job: dict[str, Any]) -> str:
    said = _KNOWN.get(reason, _text(job.get("state_description")))
    return f"{said} ({reason})" if said else reason


def _number(value: Any) -> int:
    """Read a number that newer versions of Slurm write as {"set": true, "number": 7}."""
    if isinstance(value, dict):
        value = value.get("number")
    return int(value or 0)


def _text(value: Any) -> str:
    """Read a string that newer versions of Slurm write as a list (job_state)."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)
