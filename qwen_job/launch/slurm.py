"""Backend slurm: sbatch, squeue and scancel underneath, JSON in."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.render.bundle import Bundle
from qwen_job.render.slurm import COMMENT

# Words of sbatch's refusals -> the field of job.yaml that they are about.
_FIELDS = (
    (r"invalid partition", "slurm.partition"),
    (r"invalid account|account/partition", "slurm.account"),
    (r"invalid qos", "slurm.qos"),
    (r"reservation", "slurm.reservation"),
    (r"time limit", "slurm.time"),
    (r"invalid feature|constraint", "slurm.constraint"),
    (r"gres|generic resource|gpu", "slurm.gpu_type or cluster.gpus_per_node"),
    (r"memory", "slurm.memory"),
    (r"more processors|node count|node configuration|nodes? .*not available", "cluster.nodes or cluster.gpus_per_node"),
)


def available() -> bool:
    """Tell whether sbatch is on this machine."""
    return shutil.which("sbatch") is not None


def submit(bundle: Bundle) -> Submitted:
    """Ask sbatch whether it would take the script, then hand it over.

    Errors: :class:`EnvironmentFault` without sbatch; :class:`ClusterRefused` with sbatch's words and the field.
    """
    _sbatch(["--test-only"], bundle.text)
    return Submitted(_sbatch(["--parsable"], bundle.text).split(";")[0].strip())


def _sbatch(options: list[str], script: str) -> str:
    if not available():
        way_out = "run this on a login node, or carry the script of 'render' there"
        raise EnvironmentFault(f"sbatch: not on this machine; {way_out}")
    done = subprocess.run(["sbatch", *options], input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [re.sub(r"^(sbatch: |allocation failure: |error: )+", "", line) for line in done.stderr.splitlines()]
        words = "; ".join(dict.fromkeys(line for line in lines if line))
        field = next((field for pattern, field in _FIELDS if re.search(pattern, words, re.IGNORECASE)), None)
        raise ClusterRefused(f"{field}: Slurm refuses: {words}" if field else f"Slurm refuses: {words}")
    return done.stdout


def entries() -> list[Entry]:
    """Return the user's jobs in squeue, newest first."""
    text = _run(["squeue", "--json"])
    try:
        jobs = json.loads(text)["jobs"]
    except (ValueError, KeyError) as error:
        raise EnvironmentFault(
            f"squeue --json: not the JSON that was expected ({error}); Slurm 21.08 or newer has it"
        ) from None
    user = getpass.getuser()
    mine = [job for job in jobs if job.get("user_name") in (user, "", None)]
    return sorted((_entry(job) for job in mine), key=lambda entry: int(entry.id), reverse=True)


def _entry(job: dict[str, Any]) -> Entry:
    comment = _text(job.get("comment"))
    job_id, name = _number(job.get("job_id")), _text(job.get("name"))
    output = _text(job.get("standard_output")).replace("%x", name).replace("%j", str(job_id))
    state, reason = _text(job.get("job_state")).lower(), _text(job.get("state_reason"))
    return Entry(
        target="slurm",
        id=str(job_id),
        name=name,
        state=state,
        reason="" if reason == "None" else _explain(reason, job),
        run=comment.removeprefix(COMMENT) if comment.startswith(COMMENT) else "",
        log=output,
        nodes=_text(job.get("nodes")),
        restarts=_number(job.get("restart_cnt")),
    )


def _explain(reason: str, job: dict[str, Any]) -> str:
    known = {
        "Resources": "waits for free nodes",
        "Priority": "waits behind jobs of higher priority",
        "BeginTime": "waits for its start time (a requeued job waits a moment)",
        "Dependency": "waits for another job",
        "JobHeldUser": "held; 'scontrol release' lets it go",
        "JobHeldAdmin": "held by the administrator",
        "PartitionTimeLimit": "asks for more time than the partition gives (slurm.time)",
        "ReqNodeNotAvail": "the nodes that it needs are down or reserved",
        "QOSMaxJobsPerUserLimit": "too many jobs of yours are running",
    }
    words = _text(job.get("state_description"))
    return f"{known.get(reason, words or reason)} ({reason})"


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


def _run(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise EnvironmentFault(f"{words[0]}: not on this machine; run this on a login node") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{words[0]}: no answer within a minute; is slurmctld up?") from None
    if done.returncode != 0:
        raise ClusterRefused(f"{words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout


def logs(entry: Entry, *, follow: bool) -> int:
    """Print the job's output file, with ``follow`` until interrupted."""
    if not entry.log or not Path(entry.log).exists():
        where = entry.log or "the job's output"
        raise EnvironmentFault(
            f"{where}: not there (yet): the job has not started, or this machine does not see the folder"
        )
    words = ["tail", "-n", "+1", *(["-F"] if follow else []), "--", entry.log]
    try:
        return subprocess.run(words, check=False).returncode
    except KeyboardInterrupt:
        return 0


def cancel(entry: Entry) -> None:
    """scancel the job: with a signal to all its steps, so that a running one may save first."""
    _run(["scancel", entry.id])
