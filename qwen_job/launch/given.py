"""Check the variables that ``notify:`` refers to in the shell that starts or submits a job, before the job waits."""

from __future__ import annotations

import os

from qwen_job.errors import JobError, Problem
from qwen_job.job import Job
from qwen_job.job.notify import variables
from qwen_job.sockets import address_problem


def missing_variables(job: Job, target: str) -> list[str]:
    """Return a warning for each variable of ``notify:`` that this shell would pass on to the job, but does not have.

    Raises:
        JobError: a variable holds something that is not an address.
    """
    if target not in ("local", "slurm"):
        return []
    problems, warnings = list[Problem](), list[str]()
    for index, field, name in variables(job.notify):
        value = os.environ.get(name, "").strip()
        if value and field == "url" and (problem := address_problem(value)):
            problems.append(job.problem(("notify", index, field), f"the variable {name} {problem}"))
        if not value and not job.slurm.setup:
            whose = "submits the job" if target == "slurm" else "starts the job"
            warnings.append(f"notify[{index}].{field}: {name} is not set: export it in the shell that {whose}")
    if problems:
        raise JobError(problems)
    return warnings
