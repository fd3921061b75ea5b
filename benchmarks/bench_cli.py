"""CPU time of the command line beside torchx's, each in its own environment, in one run.

    python benchmarks/bench_cli.py [--runs 15]

Compared are ``--help`` (goal: at most 0.6 of torchx's) and rendering a Slurm job of two nodes with eight GPUs each
(goal: at most 0.8 of torchx's dry run). User and system seconds of the process and its children; both take turns, and
the table shows medians. Exits with 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = CHECKOUT / ".cache" / "bench"
TORCHX = "torchx==0.7.0"
JOB = """\
name: bench
model: Qwen/Qwen-1_8B-Chat
data: /shared/data/chats.json
output: /shared/runs/bench
cluster: {gpu: A100-80G, nodes: 2, gpus_per_node: 8}
image: registry.example/qwen-job:1
"""


class Comparison(NamedTuple):
    """What both command lines do: the arguments of each, the expected output, and the goal."""

    name: str
    ours: list[str]
    theirs: list[str]
    must_hold: str
    goal: float


def environment(name: str, *requirements: str) -> Path:
    """Return the bin folder of an environment of that name with the requirements installed."""
    folder = ENVIRONMENTS / name
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *requirements], check=True, timeout=600)
    return folder / "bin"


def cpu_seconds(command: Sequence[str], must_hold: str) -> float:
    """Run a command and return the CPU seconds that it and its children took; its output must hold a text."""
    # No cluster's commands on the PATH: torchx would ask sinfo, and the time of that is not torchx's.
    environ = {"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ, text=True)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode or must_hold not in said:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}\n{said[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def comparisons(scratch: Path) -> list[Comparison]:
    """Install both sides and return what is compared."""
    ours = environment("qwen-job", "--force-reinstall", "--no-deps", str(CHECKOUT)) / "qwen-job"
    environment("qwen-job", "-c", str(CHECKOUT / "constraints.txt"), str(CHECKOUT))
    theirs = str(environment("torchx", TORCHX) / "torchx")
    (scratch / "job.yaml").write_text(JOB)
    (scratch / "train.py").write_text("print('hello')\n")
    render = [str(ours), "render", str(scratch / "job.yaml"), "--target", "slurm"]
    dry_run = [theirs, "run", "--scheduler", "slurm", "--dryrun", "dist.ddp", "-j", "2x8"]
    return [
        Comparison("--help", [str(ours), "--help"], [theirs, "--help"], "sage:", 0.6),
        Comparison("2x8 on Slurm", render, [*dry_run, "--script", str(scratch / "train.py")], "#SBATCH", 0.8),
    ]


def measure(comparison: Comparison, runs: int) -> tuple[float, float]:
    """Return the median CPU seconds of ours and theirs; the first round of each only warms the caches up."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(runs + 1):
        ours.append(cpu_seconds(comparison.ours, comparison.must_hold))
        theirs.append(cpu_seconds(comparison.theirs, comparison.must_hold))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def main() -> int:
    """Measure, print the table, and tell by the exit code whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        pairs = comparisons(Path(scratch))
        print(f"CPU seconds, median of {runs}, Python {platform.python_version()}, {os.cpu_count()} cores; {TORCHX}")
        print(f"{'':14}{'qwen-job':>10}{'torchx':>10}{'ratio':>8}{'goal':>8}")
        for comparison in pairs:
            ours, theirs = measure(comparison, runs)
            met = ours / theirs <= comparison.goal
            missed += not met
            ratio = f"{ours / theirs:8.2f}{'<=' if met else '> '}{comparison.goal:6.2f}"
            print(f"{comparison.name:14}{ours:10.3f}{theirs:10.3f}{ratio}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
