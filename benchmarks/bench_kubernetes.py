"""Kubernetes: ``helm template`` of the chart (goal: 0.5 s CPU), and ``status`` of 1,000 jobs (goal: 3 s).

    python benchmarks/bench_kubernetes.py

The jobs come from a kubectl that prints recorded lists: 1,000 running PyTorchJobs of two pods, with the pods' whole
specs. Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from tests.support.helm import WHEELS, run_helm  # noqa: E402

JOBS, RUNS = 1_000, 7
KUBECTL = """#!/bin/sh
case "$1 $2" in
"get pods") exec cat {folder}/pods ;;
"get pytorchjobs.kubeflow.org") exec cat {folder}/jobs ;;
get*) echo '{{"items": []}}' ;;
exec*) sleep 0.3; echo '{{"state": "training", "step": 7, "total_steps": 50, "time": 1}}' ;;
esac
"""


def helm_seconds(version: str) -> float:
    """Return the median CPU seconds of ``helm template``."""
    seconds = []
    for _ in range(RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run_helm("template", "my-run", ROOT / "charts" / "qwen-job", version=version)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def record(folder: Path) -> float:
    """Write the lists and the kubectl; return their size in MB."""
    plan = make_plan(load_job([ROOT / "configs" / "jobs" / "qwen-7b-chat-a100-2x8.yaml"]))
    (job,) = [thing for thing in yaml.safe_load_all(render(plan, "kubernetes").text) if thing["kind"] == "PyTorchJob"]
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    jobs, pods = [], []
    for number in range(JOBS):
        name = f"run-{number}"
        metadata = {**job["metadata"], "name": name, "namespace": "ml"}
        jobs.append({**job, "metadata": metadata, "status": {"conditions": [{"type": "Running", "status": "True"}]}})
        labels = {**template["metadata"]["labels"], "app.kubernetes.io/instance": name}
        for rank in range(2):
            own = {"name": f"{name}-worker-{rank}", "namespace": "ml", "labels": labels}
            spec = {**template["spec"], "nodeName": f"gpu{number}"}
            pods.append({"metadata": own, "spec": spec, "status": {"phase": "Running"}})
    for kind, items in (("jobs", jobs), ("pods", pods)):
        (folder / kind).write_text(json.dumps({"kind": "List", "items": items}, indent=4))
    (folder / "kubectl").write_text(KUBECTL.format(folder=folder))
    (folder / "kubectl").chmod(0o755)
    return sum((folder / kind).stat().st_size for kind in ("jobs", "pods")) / 1e6


def status_seconds(folder: Path) -> float:
    """Return the median wall seconds of ``qwen-job status``, the process's start included."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_STATE_HOME": str(folder)}
    seconds = []
    for _ in range(RUNS):
        start = time.monotonic()
        words = [sys.executable, "-m", "qwen_job", "status", "--target", "kubernetes"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
        seconds.append(time.monotonic() - start)
        if done.stdout.count("running") != JOBS:
            raise SystemExit("status does not show every job")
    return statistics.median(seconds)


def main() -> int:
    """Measure, print, judge."""
    missed = 0
    for version in WHEELS:
        seconds = helm_seconds(version)
        missed += seconds > 0.5
        print(f"helm {version} template: {seconds:.3f} s CPU (goal 0.5)")
    with tempfile.TemporaryDirectory() as scratch:
        size = record(Path(scratch))
        seconds = status_seconds(Path(scratch))
    missed += seconds > 3
    print(f"status of {JOBS} jobs, {size:.0f} MB of JSON: {seconds:.2f} s (goal 3)")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
