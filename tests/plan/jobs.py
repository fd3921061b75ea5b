"""A job to plan, as a user writes it, and questions to the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.job import Job, load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.plan.search.choice import Choice, choose
from qwen_job.plan.search.question import Question

BASE = """\
name: demo
model: Qwen/Qwen-1_8B-Chat
data: /data/chats.json
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


def ask(model: str = "Qwen/Qwen-1_8B-Chat", gpu: str = "A100-80G", **options: Any) -> Question:
    """Return the question of one GPU, unless ``options`` say otherwise."""
    return Question(load_model_shape(model), load_gpu(gpu), **options)


def chosen(question: Question) -> Choice:
    """Return the best choice, which must exist."""
    best = choose(question).best
    assert best is not None
    return best
