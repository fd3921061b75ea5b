"""Check the variables that a job reads from the shell that starts or submits it, before the job waits.

They are those that ``notify:`` refers to, and the key of an experiment tracker.
"""

from __future__ import annotations

import os
from pathlib import Path

from qwen_job.errors import JobError, Problem
from qwen_job.job import Job
from qwen_job.job.notify import variables
from qwen_job.render.tracker_keys import wanted_keys
from qwen_job.sockets import address_problem


def missing_variables(job: Job, target: str) -> list[str]:
    """Return a warning for each variable that this shell would pass on to the job, but does not have.

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
    return [*warnings, *_missing_keys(job, target)]


def _missing_keys(job: Job, target: str) -> list[str]:
    """Return a warning for each tracker whose key is neither in this shell nor in the file that its login writes."""
    if target == "slurm" and job.slurm.setup:
        return []
    whose = "submits the job" if target == "slurm" else "starts the job"
    return [
        f"train.report_to: {tracker} needs {key.variable}, which is not set: export it in the shell that {whose}, run "
        f"'{key.login}' once, or write env: {{{key.switch}: offline}}"
        for tracker, key in wanted_keys(job, {**os.environ, **job.env})
        if not _has_login(tracker, key.file)
    ]


def _has_login(tracker: str, file: str) -> bool:
    """Tell whether the login of a tracker has written its key into the user's home."""
    try:
        return tracker in Path(file).expanduser().read_text("utf-8", errors="replace")
    except (OSError, RuntimeError):
        return False
