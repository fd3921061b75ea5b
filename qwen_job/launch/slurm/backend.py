"""Backend slurm: sbatch, squeue and scancel underneath, JSON in."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.backend import Entry, Submitted
from qwen_job.launch.outputs import run_log, show_log
from qwen_job.launch.slurm.entries import jobs_of
from qwen_job.launch.slurm.environment import clusters, environment, of_shell
from qwen_job.launch.slurm.log import log_options
from qwen_job.launch.slurm.refusal import options_of
from qwen_job.launch.slurm.survey import ask, is_unreachable
from qwen_job.render.bundle import Bundle
from qwen_job.render.slurm.gpus import WAYS

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


def available() -> bool:
    """Tell whether sbatch is on this machine."""
    return shutil.which("sbatch") is not None


def submit(bundle: Bundle, options: Sequence[str] = (), run: str = "") -> Submitted:
    """Ask sbatch whether it would take the scripts, then hand them over: the main one with ``options``, then the rest.

    ``run`` is the run's folder; the log goes there where the nodes would not see the folder that we are in.

    Raises:
        EnvironmentFault: without sbatch, or for a log's folder that cannot be made.
        ClusterRefused: with sbatch's words and the field.
    """
    from qwen_job.launch.slurm.refusal import check_time

    of_then = {**bundle.fields, "time": "evaluate.time"}
    scripts = {bundle.main: bundle.fields, **{name: of_then for name, _ in bundle.then}}
    words = {name: _beside(bundle.files[name], fields, run) for name, fields in scripts.items()}
    for name, fields in scripts.items():
        _sbatch(["--test-only", *words[name]], bundle.files[name], fields)
        check_time(bundle.files[name], fields, _cluster(bundle.files[name]))
    first, cluster = _hand_over(bundle.text, [*words[bundle.main], *options], bundle.fields)
    there = [f"--clusters={cluster}"] if cluster else []
    then = [
        _hand_over(bundle.files[name], [*words[name], *there, *dependency(f"{kind}:{first}")], of_then)[0]
        for name, kind in bundle.then
    ]
    return Submitted(first, then=tuple(then), cluster=cluster)


def _beside(script: str, fields: Mapping[str, str], run: str) -> list[str]:
    """Return the words for sbatch that do not stand in the script: the shell's defaults, and the log's place."""
    options = options_of(script)
    return [*of_shell(options).options, *log_options(options, fields, run or str(Path.cwd()), Path.cwd())]


def notes(bundle: Bundle) -> tuple[str, ...]:
    """Return what is to be said before the bundle is handed over: the shell's variables that count, or do not."""
    return of_shell(options_of(bundle.text)).notes


def _cluster(script: str) -> str:
    """Return the cluster that a script is for, empty where it is this machine's or one of several."""
    return cluster_of(options_of(script)) or clusters()


def cluster_of(options: Mapping[str, str]) -> str:
    """Return the cluster in options of sbatch, which takes the short form, too."""
    return options.get("clusters") or options.get("cluster") or ""


def _hand_over(script: str, options: Sequence[str], fields: Mapping[str, str]) -> tuple[str, str]:
    """Return the job's id and its cluster, which sbatch names where it was asked for one."""
    job_id, _, cluster = _sbatch(["--parsable", *options], script, fields).strip().partition(";")
    return job_id.strip(), cluster.strip()


def dependency(condition: str) -> tuple[str, ...]:
    """Return sbatch's words for a job that waits; one that waits for what can no longer happen is cancelled."""
    return f"--dependency={condition}", "--kill-on-invalid-dep=yes"


def _sbatch(options: list[str], script: str, fields: Mapping[str, str]) -> str:
    if not available():
        way_out = "run this on a login node, or carry the script of 'render' there"
        raise EnvironmentFault(f"sbatch: not on this machine; {way_out}")
    done = subprocess.run(
        ["sbatch", *options],
        input=script,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=environment(),
    )
    if done.returncode != 0:
        lines = [re.sub(r"^(sbatch: |allocation failure: |error: )+", "", line) for line in done.stderr.splitlines()]
        words = "; ".join(dict.fromkeys(line for line in lines if line))
        if is_unreachable(words):
            raise EnvironmentFault(f"sbatch reaches no cluster: {words}; is slurmctld up, and is this a login node?")
        fits = (said for said in _FIELDS if re.search(said[0], words, re.IGNORECASE))
        _, field, way_out = next(fits, ("", "", ""))
        field = _where(field, words, fields)
        if field in (_NODES, _GPUS):
            from qwen_job.launch.slurm.refusal import explain

            field = _as_written(explain(script, _cluster(script)) or "", fields) or _about(field, fields)
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


def entries(cluster: str = "") -> list[Entry]:
    """Return the user's jobs in squeue, newest first. Errors: as :func:`everybodys`."""
    return [entry for entry in everybodys(cluster) if entry.user in (user(), "")]


def user() -> str:
    """Return who we are for Slurm: the name of the user that runs this, whatever $USER says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return getpass.getuser()


def everybodys(cluster: str = "") -> list[Entry]:
    """Return the jobs in the queue of ``cluster`` (default: this machine's, or the shell's), newest first.

    Raises:
        EnvironmentFault: without squeue, without its JSON, or when it reaches no controller.
    """
    asked = cluster or clusters()
    found = jobs_of(ask("squeue", "--json", cluster=asked))
    return [replace(entry, cluster=entry.cluster or asked) for entry in found]


def logs(entry: Entry, *, follow: bool) -> int:
    """Print the job's output file, or what its run's folder keeps of it; with ``follow`` until interrupted.

    Raises:
        EnvironmentFault: where there is no such file, or it may not be read.
    """
    from qwen_job.run.owner import forbids, owner_of

    log = entry.log or owner_of(entry.run).log
    for path in (Path(log) if log else None, run_log(entry.run)):
        if path and os.access(path, os.R_OK):
            return show_log(path, follow=follow)
    if why := (log and forbids(log)) or forbids(entry.run):
        raise EnvironmentFault(f"{log or entry.run}: {why}")
    where = log or f"the output of job {entry.shown_id}"
    why = entry.reason or "the job has not started, or this machine does not see the folder"
    raise EnvironmentFault(f"{where}: not there: {why}" if entry.is_over else f"{where}: not there (yet): {why}")


def cancel(entry: Entry) -> None:
    """scancel the job: with a signal to all its steps, so that a running one may save first.

    Raises:
        ClusterRefused: for another user's job, with the owner's name.
    """
    try:
        ask("scancel", entry.id, cluster=entry.cluster)
    except ClusterRefused as error:
        if "permission" not in str(error).lower():
            raise
        raise ClusterRefused(
            f"{entry.name} ({entry.shown_id}): only {entry.user or 'its owner'} may cancel it"
        ) from None
