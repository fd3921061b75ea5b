"""Read the JSON of squeue and sacct, in the shapes of all versions from 21.08 on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.errors import RETRYABLE_FROM, EnvironmentFault, table
from qwen_job.launch.backend import Entry
from qwen_job.launch.slurm.survey import by_cluster
from qwen_job.render.slurm.options import COMMENT
from qwen_job.run.folder import RunFolder

_NO_TASK = 0xFFFFFFFE
# "Signal 53" is how a job ends whose script could not be started, most often because its log could not be opened.
_NO_LAUNCH = 53
_AGAIN = "submit again: it resumes from the newest checkpoint"
# States of jobs that ended -> what is to be said; where there is nothing, the exit code.
_ENDS = {
    "completed": "",
    "cancelled": "",
    "failed": "",
    "out_of_memory": "a node's memory was full: ask for more (slurm.memory), then submit again",
    "timeout": f"reached its time limit before it had saved; {_AGAIN}",
    "node_fail": f"a node failed; {_AGAIN}",
    "boot_fail": f"a node did not boot; {_AGAIN}",
    "preempted": f"preempted and not requeued; {_AGAIN}",
    "deadline": f"its deadline passed; {_AGAIN}",
    "revoked": "another cluster of the federation runs it",
}
_KNOWN = {
    "Resources": "waits for free nodes",
    "Priority": "waits behind jobs of higher priority",
    "BeginTime": "waits for its start time (a requeued job waits a moment)",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "waits for a job that failed, and will be cancelled",
    "JobArrayTaskLimit": "waits for running tasks of its array",
    "JobHeldUser": "held; 'scontrol release' releases it",
    "JobHeldAdmin": "held by the administrator",
    "JobHoldMaxRequeue": "held: requeued as often as this Slurm allows; 'scontrol release' releases it",
    "PartitionTimeLimit": "asks for more time than the partition gives (slurm.time)",
    "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
    "QOSMaxJobsPerUserLimit": "too many jobs of yours are running",
}


def jobs_of(text: str) -> list[Entry]:
    """Return everybody's jobs in what ``squeue --json`` printed, newest first, an array's tasks by their numbers.

    Raises:
        EnvironmentFault: for another shape, or where squeue says that it reached no controller.
    """
    return [entry for cluster, answer in by_cluster(text) for entry in _of_cluster(cluster, answer)]


def _of_cluster(cluster: str, text: str) -> list[Entry]:
    try:
        answer = json.loads(text)
        jobs = answer["jobs"]
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentFault(
            f"squeue --json: not the JSON that was expected ({error}); Slurm 21.08 or newer has it"
        ) from None
    if not jobs and answer.get("errors"):
        # Without a controller squeue --json ends with 0, and reports it in its answer.
        said = "; ".join(str(error.get("description") or error.get("error")) for error in answer["errors"])
        raise EnvironmentFault(f"squeue reaches no cluster: {said}; is slurmctld up, and is this a login node?")
    return [replace(_entry(job), cluster=cluster) for job in sorted(jobs, key=_order)]


def endings_of(text: str) -> dict[str, tuple[str, str]]:
    """Return id -> (state, how it ended) from what ``sacct --json`` printed; nothing for another shape.

    The tasks of an array count as one job, which has failed if any of them has.
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
    """Newest first; tasks by number, and those that wait, which are one record, behind them."""
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
    """Return the path of the job's output, with sbatch's marks (%x, %4j) filled in as Slurm does it."""
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
    """Return the id that scancel takes (12, 12_3, 12_[4-7]) and the number of the task, if it is one."""
    array = _number(job.get("array_job_id"))
    if not array:
        return str(_number(job.get("job_id"))), None
    waiting = _text(job.get("array_task_string")).partition("%")[0]
    if waiting:
        return f"{array}_[{waiting}]", None
    given = job.get("array_task_id")
    task = _number(given)
    # Tasks that were cancelled before they began are one record, without an index or with Slurm's "none" (2^32 - 2).
    if given is None or (isinstance(given, dict) and not given.get("set", True)) or task >= _NO_TASK:
        return str(array), None
    return f"{array}_{task}", task


def _run_of(folder: str, task: int | None) -> str:
    """Return the run's folder of a task: that of the sweep's list, else the job's own."""
    if task is None:
        return folder
    try:
        runs = strict_json.load(RunFolder(Path(folder)).sweep)["runs"]
        return str(Path(folder, runs[task]["folder"]))
    except (OSError, ValueError, LookupError, TypeError):
        return folder


def _reason(state: str, job: dict[str, Any], log: str) -> str:
    """Say why a job waits, or how it ended; what it once waited for is no news then."""
    reason = _text(job.get("state_reason"))
    said = f"{reason} {_text(job.get('state_description'))}".lower().replace("_", " ")
    never_began = "joblaunchfailure" in said or "launch failed" in said or _ended(job.get("exit_code"))[1] == _NO_LAUNCH
    if never_began and state in ("failed", "pending", "requeue_hold", "special_exit"):
        held = "; held since" if state != "failed" else ""
        return f"{cannot_launch(log)} (JobLaunchFailure{held})"
    if state in _ENDS:
        return ended_as(state, job.get("exit_code"))
    return "" if reason in ("None", "") else _explain(reason, job)


def cannot_launch(log: str) -> str:
    """Say what to do about a job whose script could not be started, with its ``log`` where that is known."""
    where = f"its log {log} cannot be opened there" if log else "most often its log cannot be opened there"
    return f"a node could not start it: {where}; name a folder that nodes see in slurm.log_dir, or look at slurmd's log"


def ended_as(state: str, exit_code: Any) -> str:
    """Say how a job ended that is in ``state``, and what to do next."""
    return _ENDS.get(state) or ending(exit_code)


def ending(exit_code: Any) -> str:
    """Say how a job ended: from a wait status, or what newer versions write, {"return_code": 4, "signal": ...}."""
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
    """Read a text that newer versions of Slurm write as a list (job_state)."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value)
