"""Backend slurm: runs sbatch, squeue and scancel, and reads their JSON."""

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
from qwen_job.launch.backend import Backend, Entry, Submitted
from qwen_job.launch.outputs import run_log, show_log
from qwen_job.launch.slurm.entries import endings_of, jobs_of
from qwen_job.launch.slurm.log import log_options
from qwen_job.launch.slurm.refusal import check_time, explain
from qwen_job.launch.slurm.survey import ask, is_unreachable
from qwen_job.launch.slurm.user_environment import clusters, environment, of_shell
from qwen_job.render.bundle import Bundle, Request
from qwen_job.render.slurm.gpu_request import WAYS
from qwen_job.run.owner import forbids, owner_of

_GPUS = "slurm.gpu_type or cluster.gpus_per_node"
_NODES = "cluster.nodes or cluster.gpus_per_node"
_YOURS = "'sacctmgr show assoc user=$USER format=account,partition,qos' lists yours"
_LIMITS = "'sacctmgr show qos format=name,maxwall,maxtrespu,maxsubmitpu' lists the limits"
_PARTITIONS = "'sinfo --summarize' lists the partitions"
# Patterns in sbatch's messages (slurm_errno.c), the field of job.yaml that each is about, and a fix; the first match
# counts.
_FIELDS = (
    (r"accounting/qos policy", "slurm.qos or slurm.account", f"{_LIMITS}; request fewer nodes or less time"),
    (r"qos not permitted", "slurm.qos", _YOURS),
    (r"account not permitted|invalid account|account/partition", "slurm.account", _YOURS),
    (r"invalid qos", "slurm.qos", _YOURS),
    (r"group not permitted|permission denied", "slurm.partition", f"you may not use it; {_PARTITIONS}"),
    (r"invalid partition", "slurm.partition", _PARTITIONS),
    (r"invalid node name", "slurm.sbatch.nodelist or slurm.sbatch.exclude", "'sinfo --Node' lists the nodes"),
    (r"reservation", "slurm.reservation", ""),
    (r"time limit", "slurm.time", ""),
    (r"invalid feature|constraint", "slurm.constraint", ""),
    (r"gres|generic resource|gpu", _GPUS, ""),
    (r"memory", "slurm.memory", ""),
    (r"more processors|node count|node configuration|nodes? .*not available", _NODES, ""),
)
# Options -> the fields that refusal.explain names for them.
_RESOURCES = {
    "mem": "slurm.memory",
    "cpus-per-task": "slurm.cpus_per_task or cluster.cpus_per_gpu",
    "gpus-per-node": "cluster.gpus_per_node",
    "gres": "cluster.gpus_per_node",
}


class SlurmBackend(Backend):
    """Submits with sbatch, lists with squeue, cancels with scancel."""

    def available(self) -> bool:
        """Tell whether sbatch is on this machine."""
        return _has_sbatch()

    def submit(self, bundle: Bundle, options: Sequence[str] = ()) -> Submitted:
        """Let sbatch validate every script, then submit them: the main one with ``options``, then the rest.

        The log goes to the run folder where the nodes do not see the current folder.

        Raises:
            EnvironmentFault: without sbatch, or for a log folder that cannot be created.
            ClusterRefused: with sbatch's message and the field.
        """
        names = [bundle.main, *(name for name, _ in bundle.then)]
        words = {name: _beside(bundle.requests[name], bundle.run) for name in names}
        for name in names:
            _sbatch(["--test-only", *words[name]], bundle.files[name], bundle.requests[name])
            check_time(bundle.requests[name], _cluster(bundle.requests[name]))
        first, cluster = _hand_over(bundle, bundle.main, [*words[bundle.main], *options])
        there = [f"--clusters={cluster}"] if cluster else []
        then = [
            _hand_over(bundle, name, [*words[name], *there, *dependency(f"{kind}:{first}")])[0]
            for name, kind in bundle.then
        ]
        return Submitted(first, then=tuple(then), cluster=cluster)

    def entries(self, cluster: str = "") -> list[Entry]:
        """Return everybody's jobs in the queue of ``cluster`` (default: this machine's, or the shell's), newest first.

        Raises:
            EnvironmentFault: without squeue or its JSON output, or when slurmctld is unreachable.
        """
        asked = cluster or clusters()
        found = jobs_of(ask("squeue", "--json", cluster=asked))
        return [replace(entry, cluster=entry.cluster or asked) for entry in found]

    def is_mine(self, entry: Entry) -> bool:
        """Tell whether the job belongs to the user."""
        return entry.user in (user(), "")

    def endings(self, ids: Sequence[str], cluster: str = "") -> dict[str, tuple[str, str]]:
        """Return id -> (state, reason) from accounting; nothing without sacct or accounting."""
        try:
            return endings_of(ask("sacct", "--json", "--jobs", ",".join(sorted(set(ids))), cluster=cluster))
        except (ClusterRefused, EnvironmentFault):
            return {}

    def logs(self, entry: Entry, *, follow: bool) -> int:
        """Print the job's output file, or the run folder's copy of it; with ``follow`` until interrupted.

        Raises:
            EnvironmentFault: when there is no such file, or it is not readable.
        """
        log = entry.log or owner_of(entry.run).log
        for path in (Path(log) if log else None, run_log(entry.run)):
            if path and os.access(path, os.R_OK):
                return show_log(path, follow=follow)
        if why := (log and forbids(log)) or forbids(entry.run):
            raise EnvironmentFault(f"{log or entry.run}: {why}")
        where = log or f"the output of job {entry.shown_id}"
        why = entry.reason or "the job has not started, or this machine does not see the folder"
        raise EnvironmentFault(f"{where}: not there: {why}" if entry.is_over else f"{where}: not there (yet): {why}")

    def cancel(self, entry: Entry) -> None:
        """Cancel the job with a signal to all its steps, so that a running one can save first.

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


def _has_sbatch() -> bool:
    return shutil.which("sbatch") is not None


def user() -> str:
    """Return who we are for Slurm: the name of the user that runs this, whatever $USER says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return getpass.getuser()


def notes(bundle: Bundle) -> tuple[str, ...]:
    """Return what to tell the user before submission: which variables of the shell take effect, and which do not."""
    return of_shell(bundle.requests[bundle.main].values).notes


def _beside(request: Request, run: str) -> list[str]:
    """Return the options for sbatch that are not in the script: the shell's defaults, and where the log goes."""
    return [*of_shell(request.values).options, *log_options(request, run or str(Path.cwd()), Path.cwd())]


def _cluster(request: Request) -> str:
    """Return the cluster that a script is for; empty for this machine's."""
    return cluster_of(request.values) or clusters()


def cluster_of(options: Mapping[str, str]) -> str:
    """Return the cluster in options of sbatch, which accepts the short form too."""
    return options.get("clusters") or options.get("cluster") or ""


def _hand_over(bundle: Bundle, name: str, options: Sequence[str]) -> tuple[str, str]:
    """Submit one script; return the job's id and its cluster, which sbatch prints if it was given one."""
    answer = _sbatch(["--parsable", *options], bundle.files[name], bundle.requests[name])
    job_id, _, cluster = answer.strip().partition(";")
    return job_id.strip(), cluster.strip()


def dependency(condition: str) -> tuple[str, ...]:
    """Return the options of a job that waits; it is cancelled when ``condition`` can no longer come true."""
    return f"--dependency={condition}", "--kill-on-invalid-dep=yes"


def _sbatch(options: list[str], script: str, request: Request) -> str:
    if not _has_sbatch():
        fix = "run this on a login node, or copy the script from 'qwen-job render' there"
        raise EnvironmentFault(f"sbatch: not on this machine; {fix}")
    done = subprocess.run(
        ["sbatch", *options],
        input=script,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        env=environment(),
    )
    if done.returncode == 0:
        return done.stdout
    lines = [re.sub(r"^(sbatch: |allocation failure: |error: )+", "", line) for line in done.stderr.splitlines()]
    words = "; ".join(dict.fromkeys(line for line in lines if line))
    if is_unreachable(words):
        raise EnvironmentFault(f"sbatch cannot reach a cluster: {words}; is slurmctld up, and is this a login node?")
    raise _refused(words, request)


def _refused(words: str, request: Request) -> ClusterRefused:
    """Return the error for sbatch's message ``words``: the field, the message and a fix."""
    found = (fault for fault in _FIELDS if re.search(fault[0], words, re.IGNORECASE))
    _, field, fix = next(found, ("", "", ""))
    field = _where(field, words, request.fields)
    if field in (_NODES, _GPUS):
        explained = explain(request.values, _cluster(request)) or ""
        field = _as_written(explained, request.fields) or _about(field, request.fields)
    return ClusterRefused(": ".join(filter(None, (field, f"Slurm refuses: {words}", fix))))


def _where(field: str, words: str, fields: Mapping[str, str]) -> str:
    """Return the field that sbatch's message is about, as the user wrote it: under slurm.sbatch, for example."""
    named = [name for name in re.findall(r"--([A-Za-z][\w-]*)", words) if name not in ("help", "usage")]
    if named:
        return fields.get(named[0], f"slurm.sbatch.{named[0]}")
    for name, place in fields.items():
        if place == f"slurm.sbatch.{name}":
            field = field.replace({"mem": "slurm.memory"}.get(name, f"slurm.{name}"), place)
    written = [one for one in field.split(" or ") if not one.startswith("slurm.sbatch.") or one in fields.values()]
    return " or ".join(written) or field


def _as_written(explained: str, fields: Mapping[str, str]) -> str:
    """Replace fields in an explanation by the options under slurm.sbatch that the user wrote instead."""
    for option, field in _RESOURCES.items():
        if fields.get(option) == f"slurm.sbatch.{option}":
            explained = explained.replace(f"{field}: ", f"slurm.sbatch.{option}: ")
    if fields.get("nodes") == "slurm.spare_nodes":
        explained = explained.replace("cluster.nodes: ", "slurm.spare_nodes with cluster.nodes: ")
    return explained


def _about(field: str, fields: Mapping[str, str]) -> str:
    """Return the options under slurm.sbatch that this refusal may be about, else ``field``."""
    about = [*WAYS, "gres-flags"]
    if field != _GPUS:
        about += ["mem", "mem-per-cpu", "mem-per-gpu", "cpus-per-task", "cpus-per-gpu", "mincpus", "constraint", "tmp"]
        about += ["nodelist", "licenses", "core-spec"]
    return " or ".join(fields[name] for name in about if fields.get(name) == f"slurm.sbatch.{name}") or field
