"""Runs of the product as a user gets them: a job, the plan's own train.yaml and deepspeed.json, its environment.

No weights are downloaded: the model has the shape of a real one and random numbers. ``Sizes`` says how large all is;
on a CPU everything is tiny and shows only that the scripts run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.gpu_day.day import ROOT, Failed, OutOfTime
from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.lookup import UnknownName
from qwen_job.job import load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.render.configs import config_files
from qwen_job.run.config import load_config
from qwen_job.run.folder import RunFolder
from qwen_job.run.metrics import read_metrics


class Sizes(NamedTuple):
    """``warm``: the last step that is not counted (allocations, checkpoint room); ``counted``: the last that is."""

    gpu: str | dict[str, Any]
    model: str
    length: int
    rows: int  # in an optimizer step
    warm: int
    counted: int
    save_steps: int
    conversations: int

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal on a CPU."""
        return self.gpu == "CPU"

    @property
    def profiled(self) -> int:
        """The step that is profiled, after the counted ones: a profiler can slow down what follows it."""
        return self.counted + 2


TINY = Sizes("CPU", "qwen2-tiny", 64, 2, 1, 3, 4, 60)


def full_sizes(gpu: str, memory_gib: float, capability: float) -> Sizes:
    """Return the sizes of a GPU: the shape of Qwen-1.8B (Qwen1.5-1.8B has the same), rows of 2,048 tokens."""
    known: str | dict[str, Any] = gpu
    try:
        load_gpu(gpu)
    except UnknownName:  # without a peak there is no MFU
        known = {"name": gpu, "memory_gib": memory_gib, "compute_capability": capability}
    return Sizes(known, "qwen1.5-1.8b-chat", 2048, 32, 16, 24, 28, 16000)


def write_conversations(path: Path, count: int) -> None:
    """Write conversations in the reference's format, of 20 to 600 words, the same in every run."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(3000)]
    rows = []
    for number in range(count):
        question, answer = (draw.choices(vocabulary, k=int(draw.lognormvariate(4.2, 0.6)) + 10) for _ in range(2))
        turns = [
            {"from": "user", "value": " ".join(question)},
            {"from": "assistant", "value": " ".join(answer)},
        ]
        rows.append({"id": f"row_{number}", "conversations": turns})
    path.write_text(json.dumps(rows), encoding="utf-8")


def plan_for(sizes: Sizes, home: Path, name: str, **changes: Any) -> Plan:
    """Return the plan of a job in ``home``, whose jobs share model and data; ``changes`` go under ``train``.

    ``model`` and ``deepspeed`` among them go to their own places.
    """
    model, deepspeed = changes.pop("model", sizes.model), changes.pop("deepspeed", {})
    # More steps than any run is waited for: at its end it would export the model.
    train = {"model_max_length": sizes.length, "global_batch_size": sizes.rows, "max_steps": 100 * sizes.save_steps}
    job = {
        "name": name,
        "model": {"name": model, "source": "random", "cache_dir": str(home / "model")},
        "data": {"train": str(home / "data.json"), "cache_dir": str(home / "prepared")},
        "output": str(home / name),
        "cluster": {"gpu": sizes.gpu},
        "train": {**train, "save_steps": sizes.save_steps, "save_total_limit": 1, "report_to": [], **changes},
        "deepspeed": deepspeed,
    }
    return make_plan(load_job([], under=job))


def write_run(plan: Plan, home: Path, sizes: Sizes) -> Path:
    """Write the plan's files into its run folder and the conversations beside it; returns the folder."""
    folder = Path(plan.job.output)
    folder.mkdir(parents=True, exist_ok=True)
    if not (home / "data.json").exists():
        write_conversations(home / "data.json", sizes.conversations)
    for name, text in config_files(plan).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def train(
    plan: Plan,
    folder: Path,
    until: Callable[[list[dict[str, Any]]], bool],
    deadline: float,
    log: Path,
    observe: Sequence[str] = (),
) -> float:
    """Train in ``folder`` until its metrics are enough, then kill the run; returns when it was launched (time.time).

    ``observe``: words for observed.py, which then takes the launcher's place.

    Raises:
        OutOfTime: the deadline (time.monotonic) passed first.
        Failed: the run ended with an error.
    """
    config = ["--config", str(RunFolder(folder).train)]
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--nproc_per_node", "1", "--", *config]
    if observe:
        command = [sys.executable, "-m", "benchmarks.gpu_day.observed", *observe, "--", *config]
    launched = time.time()
    with log.open("a") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(plan), stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not until(read_metrics(folder)):
                if time.monotonic() > deadline:
                    raise OutOfTime
                time.sleep(0.1)
        finally:
            end(process)
    lines = read_metrics(folder)
    if not until(lines) and process.returncode:
        stops = [line["reason"] for line in lines if line["type"] == "stop"]
        raise Failed(f"exit {process.returncode}: {(stops or last_words(log))[-1][:200]}")
    return launched


def environment(plan: Plan) -> dict[str, str]:
    """Return the variables of a run on this machine, offline."""
    return {**os.environ, **plan.env, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def last_words(log: Path) -> list[str]:
    """Return the last lines of a log that say something."""
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:] or ["no output"]


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its children, if they run, and wait until they have given back what they held."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        everyone = [*launcher.children(recursive=True), launcher]
        for one in everyone if process.poll() is None else everyone[:-1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everyone, timeout=30)
    process.wait()


def has_step(number: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Return the condition that a step is in the metrics."""
    return lambda lines: any(line["type"] == "step" and line["step"] >= number for line in lines)


def has_saves(count: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Return the condition that so many checkpoints are complete."""
    return lambda lines: sum(line["type"] == "save" for line in lines) >= count


def figures_of(folder: Path, sizes: Sizes, launched: float) -> dict[str, Any]:
    """Return what a run measured: speed over the counted steps, memory, saves, the first step, beside the plan."""
    lines = read_metrics(folder)
    steps = [line for line in lines if line["type"] == "step"]
    counted = [line for line in steps if sizes.warm < line["step"] <= sizes.counted]
    config, deepspeed = load_config(RunFolder(folder).train)
    found: dict[str, Any] = {
        "micro_batch": config.training.per_device_train_batch_size,
        "accumulation": config.training.gradient_accumulation_steps,
        "zero_stage": deepspeed["zero_optimization"]["stage"],
        "torch_compile": config.torch_compile,
        "planned_bytes": config.plan.memory_bytes_per_gpu,
        "planned_step_seconds": config.plan.step_seconds,
        "step_seconds": [round(line["step_seconds"], 4) for line in steps],
    }
    if steps:
        found["first_step_after"] = round(steps[0]["time"] - launched, 2)
        found["memory_bytes"] = max(line["memory_bytes"] for line in steps)
    if counted:
        for name in ("tokens_per_second", "mfu"):
            values = [line[name] for line in counted if line[name] is not None]
            found[name] = statistics.median(values) if values else None
    compilations = [line for line in lines if line["type"] == "compile"]
    if compilations:
        names = ("compiled", "seconds", "graphs", "found", "reason")
        found["compile"] = {name: compilations[-1][name] for name in names}
    return found | _saves(lines, steps) | _observed(folder)


def _saves(lines: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, Any]:
    saves = [line for line in lines if line["type"] == "save"]
    windows = [(line["time"] - line["seconds"], line["time"]) for line in saves]
    meanwhile = [
        line["step_seconds"]
        for line in steps
        if any(start < line["time"] - line["step_seconds"] and line["time"] < end for start, end in windows)
    ]
    kept = ("step", "seconds", "pause_seconds", "bytes")
    found: dict[str, Any] = {"saves": [{name: line[name] for name in kept} for line in saves]}
    return {**found, "step_seconds_while_writing": statistics.median(meanwhile)} if meanwhile else found


def _observed(folder: Path) -> dict[str, Any]:
    """Return what observed.py saw."""
    path = folder / "observed.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def forget_checkpoints(folder: Path) -> None:
    """Make room on the disk: the figures of the run are taken."""
    shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)
