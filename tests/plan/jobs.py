"""A job to plan, as a user writes it."""

from __future__ import annotations

from pathlib import Path

from qwen_job.job import Job, load_job
from qwen_job.plan import Plan, make_plan

BASE = """\
name: demo
model: Qwen/Qwen-1_8B-Chat
data: chats.json
output: /shared/runs/demo
cluster: {gpu: A100-80G, gpus_per_node: 2}
"""


def job_file(folder: Path, text: str = BASE, name: str = "job.yaml") -> Path:
    """Write a job file and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def job_of(folder: Path, *sets: str) -> Job:
    """Return the job with ``sets`` over it."""
    return load_job([job_file(folder)], sets=sets)


def plan_of(folder: Path, *sets: str) -> Plan:
    """Return its plan."""
    return make_plan(job_of(folder, *sets))
