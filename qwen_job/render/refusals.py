"""What the targets of a job would refuse, so that a plan refuses what no render accepts."""

from __future__ import annotations

from collections.abc import Sequence

from qwen_job.errors import JobError, Problem
from qwen_job.job import Job
from qwen_job.job.hostfile import is_elsewhere
from qwen_job.plan import Plan
from qwen_job.render.targets import render_each

# A job without a section for any target runs on these with their defaults.
_DEFAULT_TARGETS = ("slurm", "local")


def targets_of(job: Job) -> list[str]:
    """Return the targets that a job is written for: those whose section it has.

    Hosts in a file or an allocation are not known here, so such a job is not checked for the target hostfile.
    """
    found = [name for name in ("slurm", "kubernetes", "local") if job.wrote(name)]
    if job.wrote("container") and "slurm" not in found:
        found.append("slurm")
    if job.hostfile.hosts and not any(map(is_elsewhere, job.hostfile.hosts)):
        found.append("hostfile")
    return found or list(_DEFAULT_TARGETS)


def refusals(plan: Plan, targets: Sequence[str]) -> dict[str, list[Problem]]:
    """Return the problems of each target that would refuse the plan; empty if all accept it.

    A sweep is rendered run by run where a target needs that.
    """
    found = {}
    for target in targets:
        try:
            render_each(plan, target)
        except JobError as error:
            found[target] = error.problems
    return found
