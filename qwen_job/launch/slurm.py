"""Backend slurm: sbatch, squeue and scancel underneath, JSON in."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.errors import ClusterRefused, EnvironmentFault, table
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.files import run_log, show_log
from qwen_job.launch.slurm_survey import ask, is_unreachable
from qwen_job.render.bundle import Bundle
from qwen_job.render.slurm import COMMENT
from qwen_job.render.slurm_gpus import WAYS

_GPUS = "slurm.gpu_type or cluster.gpus_per_node"
_NODES = "cluster.nodes or cluster.gpus_per_node"
_YOURS = "'sacctmgr show assoc user=$USER format=account,partition,qos' lists yours"
_LIMITS = "'sacctmgr show qos format=name,maxwall,maxtrespu,maxsubmitpu' lists the limits"
_PARTITIONS = "'sinfo --summarize' lists the partitions"
# Words of sbatch's refusals (slurm_errno.c) -> the field of job.yaml that they are about, and the way out. The first
# that fits counts.
_FIELDS = (
    (r"accounting/qos policy", "slurm.qos or slurm.account", f"{_LIMITS}; fewer nodes or less time may fit"),
    (r"qos not permitted", "slurm.qos", _YOURS),
    (r"account not permitted|invalid account|account/partition", "slurm.account", _YOURS),
    (r"invalid qos", "slurm.qos", _YOURS),
    (r"group not permitted|permission denied", "slurm.partition", f"it is not open to you; {_PARTITIONS}"),
    (r"invalid partition", "slurm.partition", _PARTITIONS),
    (r"invalid node name", "slurm.sbatch.nodelist or slurm.sbatch.exclude", "'sinfo --Node' lists the nodes"),
    (r"reservation", "slurm.reservation", ""),
    (r"time limit", "slurm.time", ""),
    (r"invalid feature|constraint", "slurm.constraint", ""),
    (r"gres|generic resource|gpu", _GPUS, ""),
    (r"memory", "slurm.memory", ""),
    (r"more processors|node count|node configuration|nodes? .*not available", _NODES, ""),
)
# Options -> the fields that slurm_refusal names for them.
_RESOURCES = {
    "mem": "slurm.memory",
    "cpus-per-task": "slurm.cpus_per_task or cluster.cpus_per_gpu",
    "gpus-per-node": "cluster.gpus_per_node",
    "gres": "cluster.gpus_per_node",
}

_NO_TASK = 0xFFFFFFFE
# States of jobs that ended -> what is to be said; where there is nothing, the exit code.
_ENDS = {
    "completed": "",
    "cancelled": "",
    "failed": "",
    "out_of_memory": "",
    "timeout": "reached its time limit before it had saved",
    "node_fail": "a node failed",
}


def available() -> bool:
    """Tell whether sbatch is on this machine."""
    return shutil.which("sbatch") is not None


def submit(bundle: Bundle, options: Sequence[str] = ()) -> Submitted:
    """Ask sbatch whether it would take the scripts, then hand them over: the main one with ``options``, then the rest.

    Errors: :class:`EnvironmentFault` without sbatch; :class:`ClusterRefused` with sbatch's words and the field.
    """
    from qwen_job.launch.slurm_refusal import check_time

    of_then = {**bundle.fields, "time": "evaluate.time"}
    for name in (bundle.main, *(name for name, _ in bundle.then)):
        fields = bundle.fields if name == bundle.main else of_then
        _sbatch(["--test-only"], bundle.files[name], fields)
        check_time(bundle.files[name], fields)
    first = _hand_over(bundle.text, options, bundle.fields)
    then = [_hand_over(bundle.files[name], dependency(f"{kind}:{first}"), of_then) for name, kind in bundle.then]
    return Submitted(first, then=tuple(then))


def _hand_over(script: str, options: Sequence[str], fields: Mapping[str, str]) -> str:
    return _sbatch(["--parsable", *options], script, fields).split(";")[0].strip()


def dependency(condition: str) -> tuple[str, ...]:
    """Return sbatch's words for a job that waits; one that waits for what can no longer happen is cancelled."""
    return f"--dependency={condition}", "--kill-on-invalid-dep=yes"


def _sbatch(options: list[str], script: str, fields: Mapping[str, str]) -> str:
    if not available():
        way_out = "run this on a login node, or carry the script of 'render' there"
        raise EnvironmentFault(f"sbatch: not on this machine; {way_out}")
    done = subprocess.run(["sbatch", *options], input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [re.sub(r"^(sbatch: |allocation failure: |error: )+", "", line) for line in done.stderr.splitlines()]
        words = "; ".join(dict.fromkeys(line for line in lines if line))
        if is_unreachable(words):
            raise EnvironmentFault(f"sbatch reaches no cluster: {words}; is slurmctld up, and is this a login node?")
        fits = (said for said in _FIELDS if re.search(said[0], words, re.IGNORECASE))
        _, field, way_out = next(fits, ("", "", ""))
        field = _where(field, words, fields)
        if field in (_NODES, _GPUS):
            from qwen_job.launch.slurm_refusal import explain

            field = _as_written(explain(script) or "", fields) or _about(field, fields)
        raise ClusterRefused(": ".join(filter(None, (field, f"Slurm refuses: {words}", way_out))))
    return done.stdout


def _where(field: str, words: str, fields: Mapping[str, str]) -> str:
    """Return the field that sbatch's words are about, where it was written: under slurm.sbatch, for one."""
    named = [name for name in re.findall(r"--([A-Za-z][\w-]*)", words) if name not in ("help", "usage")]
    if named:
        return fields.get(named[0], f"slurm.sbatch.{named[0]}")
    for name, place in fields.items():
        if place == f"slurm.sbatch.{name}":
            field = field.replace({"mem": "slurm.memory"}.get(name, f"slurm.{name}"), place)
    written = [one for one in field.split(" or ") if not one.startswith("slurm.sbatch.") or one in fields.values()]
    return " or ".join(written) or field


def _as_written(explained: str, fields: Mapping[str, str]) -> str:
    """Name in an explanation the option under slurm.sbatch where that is what the user wrote."""
    for option, field in _RESOURCES.items():
        if fields.get(option) == f"slurm.sbatch.{option}":
            explained = explained.replace(f"{field}: ", f"slurm.sbatch.{option}: ")
    return explained


def _about(field: str, fields: Mapping[str, str]) -> str:
    """Return the options under slurm.sbatch that such a refusal may be about, else ``field``."""
    about = [*WAYS, "gres-flags"]
    if field != _GPUS:
        about += ["mem", "mem-per-cpu", "mem-per-gpu", "cpus-per-task", "cpus-per-gpu", "mincpus", "constraint", "tmp"]
        about += ["nodelist", "licenses", "core-spec"]
    return " or ".join(fields[name] for name in about if fields.get(name) == f"slurm.sbatch.{name}") or field


def entries() -> list[Entry]:
    """Return the user's jobs in squeue, newest first."""
    text = ask("squeue", "--json")
    try:
        answer = json.loads(text)
        jobs = answer["jobs"]
    except (ValueError, KeyError) as error:
        raise EnvironmentFault(
            f"squeue --json: not the JSON that was expected ({error}); Slurm 21.08 or newer has it"
        ) from None
    if not jobs and answer.get("errors"):
        # Without a controller squeue --json ends with 0, and says so in its answer.
        said = "; ".join(str(error.get("description") or error.get("error")) for error in answer["errors"])
        raise EnvironmentFault(f"squeue reaches no cluster: {said}; is slurmctld up, and is this a login node?")
    user = getpass.getuser()
    mine = [job for job in jobs if job.get("user_name") in (user, "", None)]
    mine.sort(key=lambda job: _number(job.get("job_id")), reverse=True)
    return [_entry(job) for job in mine]


def _entry(job: dict[str, Any]) -> Entry:
    comment = _text(job.get("comment"))
    name = _text(job.get("name"))
    job_id, task = _array_id(job)
    output = _text(job.get("standard_output"))
    number, array = str(_number(job.get("job_id"))), job_id.partition("_")[0]
    for mark, value in (("%x", name), ("%j", number), ("%A", array), ("%a", "" if task is None else str(task))):
        output = output.replace(mark, value)
    state = _text(job.get("job_state")).lower()
    return Entry(
        target="slurm",
        id=job_id,
        name=name,
        state=state,
        reason=_reason(state, job),
        run=_run_of(comment.removeprefix(COMMENT), task) if comment.startswith(COMMENT) else "",
        log=output,
        nodes=_text(job.get("nodes")),
        restarts=_number(job.get("restart_cnt")),
    )


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
    # Tasks that were cancelled before they began are one record, with no number or Slurm's "none" (2^32 - 2).
    if given is None or (isinstance(given, dict) and not given.get("set", True)) or task >= _NO_TASK:
        return str(array), None
    return f"{array}_{task}", task


def _run_of(folder: str, task: int | None) -> str:
    """Return the run's folder of a task: that of the sweep's list, else the job's own."""
    if task is None:
        return folder
    try:
        runs = strict_json.load(Path(folder, "sweep.json"))["runs"]
        return str(Path(folder, runs[task]["folder"]))
    except (OSError, ValueError, LookupError, TypeError):
        return folder


def _reason(state: str, job: dict[str, Any]) -> str:
    """Say why a job waits, or how it ended; what it once waited for is no news then."""
    if state in _ENDS:
        return _ENDS[state] or ending(job.get("exit_code"))
    reason = _text(job.get("state_reason"))
    return "" if reason in ("None", "") else _explain(reason, job)


def ending(exit_code: Any) -> str:
    """Say how a job ended: from a wait status, or what newer versions write, {"return_code": 4, "signal": ...}."""
    if isinstance(exit_code, dict):
        signal = exit_code.get("signal") or {}
        code, number = _number(exit_code.get("return_code")), _number(signal.get("id", signal.get("signal_id")))
    else:
        code, number = _number(exit_code) >> 8, _number(exit_code) & 127
    if number:
        return f"signal {number}"
    meaning = next((words for known, _, words in table() if known == code), "")
    return ": ".join(filter(None, (f"exit code {code}", meaning))) if code else ""


def _explain(reason: str, job: dict[str, Any]) -> str:
    known = {
        "Resources": "waits for free nodes",
        "Priority": "waits behind jobs of higher priority",
        "BeginTime": "waits for its start time (a requeued job waits a moment)",
        "Dependency": "waits for another job",
        "DependencyNeverSatisfied": "waits for a job that failed, and will be cancelled",
        "JobArrayTaskLimit": "waits for tasks of its array that run",
        "JobHeldUser": "held; 'scontrol release' lets it go",
        "JobHeldAdmin": "held by the administrator",
        "PartitionTimeLimit": "asks for more time than the partition gives (slurm.time)",
        "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
        "QOSMaxJobsPerUserLimit": "too many jobs of yours are running",
    }
    words = _text(job.get("state_description"))
    said = known.get(reason, words)
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


def logs(entry: Entry, *, follow: bool) -> int:
    """Print the job's output file, or what its run's folder keeps of it; with ``follow`` until interrupted."""
    log = Path(entry.log) if entry.log and Path(entry.log).exists() else run_log(entry.run)
    if log is None:
        where = entry.log or "the job's output"
        raise EnvironmentFault(
            f"{where}: not there (yet): the job has not started, or this machine does not see the folder"
        )
    return show_log(log, follow=follow)


def cancel(entry: Entry) -> None:
    """scancel the job: with a signal to all its steps, so that a running one may save first."""
    ask("scancel", entry.id)
