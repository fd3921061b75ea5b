"""Jobs to test with: the five lines, what a test adds, and the way from there to a plan and a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qwen_job.errors import JobError
from qwen_job.job import Job, load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource

# The examples that are rendered for every target; tests/test_examples.py has all examples, each for its own target.
EXAMPLES = [
    resource("configs", "jobs", f"{name}.yaml")
    for name in ("demo", "qwen-1_8b-chat-a100", "qwen-1_8b-chat-v100", "qwen-7b-chat-a100-2x8")
]
FIVE_LINES = """\
name: tiny
model: Qwen/Qwen-1_8B-Chat
data: /data/chats.json
output: /runs/tiny
cluster: {gpu: A100-80G, gpus_per_node: 2}
"""
# Neither GPU nor model has known figures, so nothing here moves with the estimates.
PINNED: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "acme/unknown-chat"},
    "data": {"train": "/data/chats.json"},
    "output": "/runs/tiny",
    "cluster": {"gpu": {"name": "X1", "memory_gib": 80, "compute_capability": 8.0}, "gpus_per_node": 2},
    "train": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
    "deepspeed": {"zero_stage": 2, "offload_optimizer": False},
}


def write(folder: Path, text: str = "", *, base: str = FIVE_LINES, name: str = "job.yaml") -> Path:
    """Write the five lines and ``text`` below them."""
    path = folder / name
    path.write_text(base + text, "utf-8")
    return path


def load(folder: Path, text: str = "", *sets: str, environ: dict[str, str] | None = None) -> Job:
    """Load the five lines with ``text`` below and ``sets`` over them."""
    return load_job([write(folder, text)], sets=sets, environ={} if environ is None else environ)


def problems(folder: Path, text: str = "", *sets: str, environ: dict[str, str] | None = None) -> list[str]:
    """Return what is wrong with that job, each problem without the folder in front."""
    try:
        make_plan(load(folder, text, *sets, environ=environ))
    except JobError as error:
        return [str(problem).replace(f"{folder}/", "") for problem in error.problems]
    return []


def plan(folder: Path, text: str = "", *sets: str) -> Plan:
    """Plan that job."""
    return make_plan(load(folder, text, *sets))


def pinned_plan(folder: Path, **sections: Any) -> Plan:
    """Plan :data:`PINNED` with ``sections`` laid over its sections."""
    value = {**PINNED}
    for section, content in sections.items():
        known = value.get(section)
        value[section] = {**known, **content} if isinstance(known, dict) else content
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True, sort_keys=False), "utf-8")
    return make_plan(load_job([path], environ={}))


def bundle(folder: Path, target: str, **sections: Any) -> Bundle:
    """Render that plan."""
    return render(pinned_plan(folder, **sections), target)
