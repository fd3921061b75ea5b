"""Faults, starts and a long queue on a real Slurm of two nodes on this machine (tests/slurmlab).

    python benchmarks/bench_faults.py faults   # a rank killed every minute, beside an undisturbed run
    python benchmarks/bench_faults.py lost     # a node powered off, with a spare node and without
    python benchmarks/bench_faults.py start    # from sbatch to the first step, against a bare srun torchrun
    python benchmarks/bench_faults.py status   # `qwen-job status` with 1,000 jobs in the queue

Needs root and slurm-wlm, munge, iproute2. The jobs are the demo, one process a node.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from qwen_job.report.page import main_figures
from qwen_job.run.metrics import read_metrics
from tests.chaos.run import Run, weights
from tests.e2e.steps import environment
from tests.slurmlab import Lab

EVERY_SECONDS = 60.0
SAVE_STEPS = 26
JOBS = 1000
# Slurm's defaults: a requeue costs that long, and a node without power is down only after so long.
CRED_EXPIRE = 120
SLURMD_TIMEOUT = "SlurmdTimeout=300\n"
# What the batch script prints when it requeues the job, and when an attempt begins.
REQUEUES = "requeueing from"
ATTEMPTS = "newest checkpoint"
LOST_AT = 10  # a step after the first states in memory
BARE = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --output={folder}/out
export OMP_NUM_THREADS=1
srun bash -c '{python} -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank $SLURM_NODEID \\
  --master_addr node1 --master_port 29511 -m qwen_job.train --config {folder}/run/train.yaml'
"""


def main() -> int:
    """Measure one thing and print the figures; 1 when a job did not complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "lost", "start", "status"])
    parser.add_argument("--steps", type=int, default=800, help="of the run under faults")
    parser.add_argument("--times", type=int, default=3, help="how often a node with a spare is lost")
    options = parser.parse_args()
    # /tmp is each host's own.
    folder = Path(tempfile.mkdtemp(prefix="qwen-job-bench-", dir="/var/tmp"))
    try:
        if options.what == "lost":
            return lost(folder, options.times)
        with Lab(2, cred_expire=CRED_EXPIRE) as lab:
            if options.what == "faults":
                return faults(lab, folder, options.steps)
            return start(lab, folder) if options.what == "start" else status(lab)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults(lab: Lab, folder: Path, steps: int) -> int:
    """Train undisturbed, then the same with the two ranks killed in turn, one a minute, until the job is over."""
    settings = {"train__max_steps": steps, "train__save_steps": SAVE_STEPS, "retry__max_retries": 100}
    calm = Run(lab, folder / "calm", **settings).submit()
    print(f"undisturbed: job {calm.wait_end(3000)}")
    print("\n".join(main_figures(calm.path)[-2:]))
    run = Run(lab, folder / "disturbed", **settings).submit()
    over = threading.Event()
    kills: list[float] = []
    killer = threading.Thread(target=_kill_in_turn, args=(run, over, kills), daemon=True)
    killer.start()
    state = run.wait_end(3000)
    over.set()
    killer.join()
    print(f"job {state}; {len(kills)} ranks killed, one every {EVERY_SECONDS:g} s")
    print("\n".join(main_figures(run.path)[-2:]))
    lines = read_metrics(run.path)
    saves = [line["time"] for line in lines if line["type"] == "save"]
    print(f"Median time between saves: {statistics.median(b - a for a, b in pairwise(saves)):.1f} s")
    for kind, where in (("save", "on disk"), ("memory", "in memory")):
        pauses = [float(line["pause_seconds"]) for line in lines if line["type"] == kind]
        middle, longest = statistics.median(pauses), max(pauses)
        print(f"Pauses of {len(pauses)} saves {where}: median {middle:.3f} s, longest {longest:.3f} s")
    waits = [wait for kill in kills if (wait := _to_first_step(lines, kill))]
    if waits:
        print(f"From the kill to the first new step: {', '.join(f'{wait:.1f}' for wait in waits)} s")
        print(f"Median: {statistics.median(waits):.1f} s, longest: {max(waits):.1f} s")
    in_place = sum(1 for line in lines if line.get("in_place"))
    print(f"Restarts in place: {in_place}; load of the machine now: {os.getloadavg()[0]:.1f}")
    requeues = [wait for moment in _said(run.output, REQUEUES) if (wait := _to_first_step(lines, moment))]
    if requeues:
        print(f"From the requeue to the first new step: {', '.join(f'{wait:.0f}' for wait in requeues)} s")
    if state != "COMPLETED":
        return 1
    equal = weights(run.path) == weights(calm.path)
    print(f"Weights of the two runs: {'equal' if equal else 'different'}, byte by byte")
    return 0 if equal else 1


def _kill_in_turn(run: Run, over: threading.Event, kills: list[float]) -> None:
    while not over.is_set() and run.last_step() == 0:
        over.wait(0.2)
    while not over.wait(EVERY_SECONDS):
        ranks = run.ranks()
        if ranks and not (run.path / "done.json").exists():
            ranks[len(kills) % len(ranks)].kill()
            kills.append(time.time())


def _said(output: str, words: str) -> list[float]:
    """Return when the batch script printed a line with these words (unix seconds)."""
    lines = [line for line in output.splitlines() if line.startswith("qwen-job [") and words in line]
    times = [line.split("[")[1][:19] for line in lines]
    return [time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S")) for text in times]


def _to_first_step(lines: list[dict[str, float | str]], moment: float) -> float | None:
    """Return the seconds from ``moment`` to the first step of the next start; None when there was none."""
    begun = next((float(x["time"]) for x in lines if x["type"] == "start" and float(x["time"]) > moment), None)
    if begun is None:
        return None
    return next((float(x["time"]) - moment for x in lines if x["type"] == "step" and float(x["time"]) > begun), None)


def lost(folder: Path, times: int) -> int:
    """Power off the second of two nodes, ``times`` times with a spare, then without (a third node is idle)."""
    equal, calm = True, b""
    for spares in (*[1] * times, 0):
        with Lab(3, cred_expire=CRED_EXPIRE, extra_conf=SLURMD_TIMEOUT) as lab:
            settings = {"train__max_steps": 60, "train__memory_save_steps": 1}
            if not calm:
                undisturbed = Run(lab, folder / "calm", **settings).submit()
                print(f"undisturbed: job {undisturbed.wait_end(600)}")
                calm = weights(undisturbed.path)
            run = Run(
                lab, folder / f"lost-{len(list(folder.iterdir()))}", slurm__spare_nodes=spares, **settings
            ).submit()
            run.wait_step(LOST_AT)
            load, moment = os.getloadavg()[0], time.time()
            lab.crash("node2")
            # Slurm counts the job as completing until it has marked the node as down.
            run.wait_file("done.json", 1200)
            wait = _to_first_step(read_metrics(run.path), moment)
            followed = min((at - moment for at in _said(run.output, ATTEMPTS) if at > moment - 1), default=float("nan"))
            same = weights(run.path) == calm
            equal = equal and same
            print(f"{'a' if spares else 'no'} spare node: next attempt after {followed:.0f} s, ", end="")
            print(f"first step after {wait or float('nan'):.1f} s; load {load:.1f}; ", end="")
            print(f"weights {'equal' if same else 'different'}")
    return 0 if equal else 1


def start(lab: Lab, folder: Path) -> int:
    """Submit the same short training in turn by our script and by a bare srun torchrun."""
    ours, bare = [], []
    for turn in range(3):
        one = folder / f"ours-{turn}"
        run = Run(lab, one, train__max_steps=3, train__save_steps=3)
        run.submit()
        assert run.wait_end(200) == "COMPLETED", run.output
        ours.append(_first_step(run.path) - run.submitted)
        other = folder / f"bare-{turn}"
        (other / "run").mkdir(parents=True)
        for name in ("train.yaml", "deepspeed.json"):
            text = (run.path / name).read_text(encoding="utf-8")
            (other / "run" / name).write_text(text.replace(str(one), str(other)), encoding="utf-8")
        began = time.time()
        script = BARE.format(folder=other, python=sys.executable)
        job = int(lab.on("ctl", ["sbatch", "--parsable"], text=script, env=environment()).stdout)
        lab.wait_job(job, "COMPLETED", timeout=200)
        bare.append(_first_step(other / "run") - began)
    for name, seconds in (("our script", ours), ("bare srun torchrun", bare)):
        print(f"sbatch to first step, {name}: {', '.join(f'{second:.1f}' for second in seconds)} s")
    print(f"our script adds {statistics.median(ours) - statistics.median(bare):+.1f} s (median)")
    return 0


def _first_step(run: Path) -> float:
    return next(float(line["time"]) for line in read_metrics(run) if line["type"] == "step")


def status(lab: Lab) -> int:
    """Fill the queue with held jobs and ask for their status; the first call of all asks an empty queue."""
    words = ["qwen-job", "status"]
    first, _ = _timed(lab, words)
    one = "printf '#!/bin/sh\\ntrue\\n' | sbatch --hold --job-name=run-$i --comment=qwen-job:/runs/$i >/dev/null"
    lab.on("ctl", f"for i in $(seq {JOBS}); do {one}; done", timeout=300)
    calls = [_timed(lab, words) for _ in range(5)]
    bare, _ = _timed(lab, ["squeue", "--json"])
    reach, _ = _timed(lab, ["true"])
    print(f"{len(calls[0][1].splitlines())} lines; status: {', '.join(f'{seconds:.2f}' for seconds, _ in calls)} s")
    print(f"with no job: {first:.2f} s; squeue --json alone: {bare:.2f} s; reaching the login node: {reach:.2f} s")
    return 0


def _timed(lab: Lab, words: list[str]) -> tuple[float, str]:
    began = time.monotonic()
    done = lab.on("ctl", words, env=environment())
    return time.monotonic() - began, done.stdout


if __name__ == "__main__":
    sys.exit(main())
