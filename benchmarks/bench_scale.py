"""Rendering at scale: a hostfile of 10,000 hosts (goal: 1 s), and 1,000 jobs in one process (goal: 10 s, memory flat).

    python benchmarks/bench_scale.py

Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render

HOSTS = 10_000
JOBS = 1_000
FLAT_MIB = 8.0
JOB = """\
name: {name}
model: Qwen/Qwen-1_8B-Chat
data: /shared/data/chats.json
output: /shared/runs/{name}
cluster: {{gpu: A100-80G, nodes: {nodes}, gpus_per_node: 8}}
image: registry.example/qwen-job:1
"""
TARGETS = ("slurm", "kubernetes", "helm", "hostfile")


def resident_mib() -> float:
    """Return the memory that this process occupies, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def render_one(folder: Path, name: str, target: str, nodes: int) -> str:
    """Go the whole way from a job.yaml to the texts of one target, and return the main one."""
    path = folder / "job.yaml"
    text = JOB.format(name=name, nodes=nodes)
    if target == "hostfile":
        text += f"hostfile: {{hosts: ['gpu[00001-{nodes:05}]']}}\n"
    path.write_text(text)
    bundle = render(make_plan(load_job([path])), target)
    return bundle.files[bundle.main]


def seconds_for_hosts(folder: Path) -> float:
    """Return the CPU seconds for one job of HOSTS hosts."""
    start = time.process_time()
    path = folder / "job.yaml"
    path.write_text(JOB.format(name="many", nodes=HOSTS) + f"hostfile: {{hosts: ['gpu[00001-{HOSTS}]']}}\n")
    files = render(make_plan(load_job([path])), "hostfile").files
    lines = max(text.count(" slots=") for text in files.values())
    if lines != HOSTS:
        raise SystemExit(f"the hostfile has {lines} hosts instead of {HOSTS}")
    return time.process_time() - start


def seconds_for_jobs(folder: Path) -> tuple[float, float]:
    """Return the CPU seconds for JOBS jobs over all targets, and by how many MiB the last nine tenths grew memory."""
    start = time.process_time()
    before = 0.0
    for number in range(JOBS):
        text = render_one(folder, f"job-{number}", TARGETS[number % len(TARGETS)], nodes=2)
        if f"job-{number}" not in text and number % len(TARGETS) != TARGETS.index("hostfile"):
            raise SystemExit(f"job {number} does not carry its name")
        if number == JOBS // 10:
            before = resident_mib()
    return time.process_time() - start, resident_mib() - before


def main() -> int:
    """Measure, print the table, and tell by the exit code whether the goals are met."""
    with tempfile.TemporaryDirectory() as scratch:
        hosts = seconds_for_hosts(Path(scratch))
        jobs, growth = seconds_for_jobs(Path(scratch))
    rows = [
        (f"hostfile of {HOSTS} hosts, CPU s", hosts, 1.0),
        (f"{JOBS} jobs in one process, CPU s", jobs, 10.0),
        ("  memory grown since job 100, MiB", growth, FLAT_MIB),
    ]
    for name, value, goal in rows:
        print(f"{name:36}{value:8.2f}  {'<=' if value <= goal else '> '} {goal:g}")
    return 1 if any(value > goal for _, value, goal in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
