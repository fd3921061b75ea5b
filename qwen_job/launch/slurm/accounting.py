"""What became of jobs that Slurm's queue has forgotten: sacct knows, where the cluster keeps accounts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.launch.slurm.entries import ended_as
from qwen_job.launch.slurm.survey import ask


def endings(ids: Iterable[str], cluster: str = "") -> dict[str, tuple[str, str]]:
    """Return id -> state and how it ended; an array's tasks speak as one, those that failed first.

    Without sacct or accounts nothing is known, and nothing is returned.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    try:
        jobs = json.loads(ask("sacct", "--json", "--jobs", ",".join(wanted), cluster=cluster))["jobs"]
        told = [(_id(job), _state(job), ended_as(_state(job), job.get("exit_code"))) for job in jobs]
    except (ClusterRefused, EnvironmentFault, ValueError, LookupError, TypeError, AttributeError):
        return {}
    told.sort(key=lambda one: one[1] != "completed")
    return {job: (state, reason) for job, state, reason in told}


def _id(job: dict[str, Any]) -> str:
    array = (job.get("array") or {}).get("job_id")
    if isinstance(array, dict):
        array = array.get("number")
    return str(array or job["job_id"])


def _state(job: dict[str, Any]) -> str:
    state = job["state"]["current"]
    return str(state[0] if isinstance(state, list) else state).lower()
