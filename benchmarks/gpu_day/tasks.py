"""What is measured, most important first, and about how long each takes on an H200 (the first run compiles).

Runs of the product share a home: its random model and its prepared rows are made once. A run that is killed or out of
time keeps what its metrics say.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_day import product
from benchmarks.gpu_day.day import ROOT, Failed, OutOfTime, Results, Task
from benchmarks.gpu_day.product import Sizes
from qwen_job.render.configs import config_files
from qwen_job.run.folder import DEEPSPEED, TRAIN, RunFolder
from qwen_job.run.metrics import read_metrics


class Place(NamedTuple):
    """``out`` is brought home (few files, small); ``home`` is scratch: models, rows, checkpoints."""

    out: Path
    home: Path
    sizes: Sizes
    results: Results

    @property
    def log(self) -> Path:
        """Everything that the processes printed."""
        return self.out / "log.txt"

    def earlier(self, task: str) -> dict[str, Any]:
        """Return the figures of a task that was done before."""
        figures: dict[str, Any] = self.results.tasks.get(task, {}).get("figures", {})
        return figures


def all_tasks(place: Place) -> list[Task]:
    """Return the tasks by priority, with the seconds that each is expected to take."""
    tiny = place.sizes.tiny
    seconds = {
        "machine": 20, "tests": 130, "default": 190, "restart": 45, "liger": 60, "peaks": 60, "variants": 60,
        "qwen3": 75, "qwen3.5": 90, "kernels": 60, "peer-save": 75, "eager": 75, "compiled": 75, "reference": 60,
    }  # fmt: skip
    works: dict[str, Any] = {
        "machine": partial(worker, place, "machine"),
        "tests": partial(tests, place),
        "default": partial(default, place),
        "restart": partial(restart, place),
        "liger": partial(peer, place, "liger"),
        "peaks": partial(worker, place, "peaks"),
        "variants": partial(worker, place, "variants"),
        "qwen3": partial(side, place, "qwen3", {"model": "qwen2-tiny" if tiny else "qwen3-1.7b"}),
        "qwen3.5": partial(side, place, "qwen3.5", {"model": "qwen2-tiny" if tiny else "qwen3.5-2b"}),
        "kernels": partial(worker, place, "kernels"),
        "peer-save": partial(peer_save, place),
        "eager": partial(side, place, "eager", {"torch_compile": False}),
        "compiled": partial(side, place, "compiled", {"torch_compile": True}),
        "reference": partial(peer, place, "reference"),
    }
    if tiny:
        del works["compiled"]  # compiling for a CPU takes minutes and shows nothing
        return [Task(name, 1, work) for name, work in works.items()]
    return [Task(name, seconds[name], work, limit=1.7 * seconds[name] + 20) for name, work in works.items()]


def run(place: Place, command: list[str], deadline: float, log: Path | None = None) -> int:
    """Run a process of ours, in a run's environment, until ``deadline``; returns its exit code.

    Raises:
        OutOfTime: it was killed.
    """
    variables = product.environment(product.plan_for(place.sizes, place.home, "same"))
    with (log or place.log).open("a") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=out, stderr=subprocess.STDOUT)
        try:
            return process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise OutOfTime from None
        finally:
            product.end(process)


def worker(place: Place, kind: str, deadline: float) -> dict[str, Any]:
    """Measure one kind in a process of its own, which resumes what ``kind`` measured before."""
    out = place.home / f"{kind}.json"
    if rows := place.earlier(kind):
        out.write_text(json.dumps(rows))
    command = [sys.executable, "-m", "benchmarks.gpu_day.worker", kind, "--sizes", json.dumps(place.sizes._asdict())]
    try:
        code = run(place, [*command, "--home", str(place.home)], deadline)
    except OutOfTime as error:
        raise OutOfTime(_rows(out)) from error
    if code:
        raise Failed(f"exit {code}: {product.last_words(place.log)[-1][:200]}", _rows(out))
    return _rows(out)


def _rows(path: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return rows


def tests(place: Place, deadline: float) -> dict[str, Any]:
    """Run the tests that need a GPU, side by side: their start-up, not the GPU, takes the time."""
    log = place.out / "tests.txt"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-v", "-p", "no:cacheprovider"]
    if place.sizes.tiny:
        command.append("--collect-only")
    elif find_spec("xdist"):
        command += ["-n", "12", "--dist", "worksteal"]
    try:
        code = run(place, command, deadline, log)
    except OutOfTime as error:
        raise OutOfTime(dict(cases(log.read_text()))) from error
    figures = cases(log.read_text())
    if code:
        raise Failed(f"pytest ended with {code}: tests.txt has why", dict(figures))
    return dict(figures)


_CASE = re.compile(
    r"(?:^\[gw\d+\] \[ *\d+%\] (?P<first>[A-Z]+) )?tests/gpu/(?P<name>\S+)(?: (?P<last>[A-Z]+))?(?: .*)?$", re.MULTILINE
)


def cases(printed: str) -> dict[str, str]:
    """Return each test's outcome (passed, failed, error, skipped) from what pytest -v printed so far."""
    outcomes = {match["name"]: match["first"] or match["last"] for match in _CASE.finditer(printed)}
    return {name: word.lower() for name, word in outcomes.items() if word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}


def default(place: Place, deadline: float) -> dict[str, Any]:
    """Train as the plan chooses: speed, a profile, the first step, and the pauses of two saves."""
    saves = product.has_saves(2)
    figures = _observed(place, "default", {}, saves, deadline, ["--profile", str(place.sizes.profiled)])
    trace = place.home / "default" / "trace.json.gz"
    if trace.exists() and trace.stat().st_size < 15 * 2**20:
        shutil.copy(trace, place.out / "trace.json.gz")
    return figures


def _observed(
    place: Place, name: str, changes: dict[str, Any], until: Any, deadline: float, words: list[str]
) -> dict[str, Any]:
    """Train a job from its first step; what it has measured when the time is up counts."""
    shutil.rmtree(place.home / name, ignore_errors=True)
    plan = product.plan_for(place.sizes, place.home, name, **changes)
    folder = product.write_run(plan, place.home, place.sizes)
    began = time.time()
    try:
        product.train(plan, folder, until, deadline, place.log, words)
    except (OutOfTime, Failed) as error:
        error.figures.update(product.figures_of(folder, place.sizes, began))
        raise
    return product.figures_of(folder, place.sizes, began)


def restart(place: Place, deadline: float) -> dict[str, Any]:
    """Start the default run again as its launcher would: from the launch to the end of the first step."""
    plan = product.plan_for(place.sizes, place.home, "default")
    folder = RunFolder(place.home / "default")
    if not any(line["type"] == "save" for line in read_metrics(folder.path)):
        raise Failed("the default run saved no checkpoint")
    before = len(read_metrics(folder.path))

    def resumed(lines: list[dict[str, Any]]) -> bool:
        return len([line for line in lines[before:] if line["type"] == "step"]) >= 3

    launched = product.train(plan, folder.path, resumed, deadline, place.log)
    lines = read_metrics(folder.path)[before:]
    steps = [line for line in lines if line["type"] == "step"]
    product.forget_checkpoints(folder.path)
    return {
        "resumed_from": next(line["resumed_from"] for line in lines if line["type"] == "start"),
        "first_step_after": round(steps[0]["time"] - launched, 2),
        "step_seconds": [line["step_seconds"] for line in steps],
        "compile": next((line for line in lines if line["type"] == "compile"), {}),
    }


def side(place: Place, name: str, changes: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Train another side of ours up to its last counted step, unless the plan's choice is the same."""
    mine = product.plan_for(place.sizes, place.home, "same", **changes)
    theirs = product.plan_for(place.sizes, place.home, "same")
    if all(config_files(mine)[name] == config_files(theirs)[name] for name in (TRAIN, DEEPSPEED)):
        return {"same as": "default"}
    counted = product.has_step(place.sizes.counted)
    return _observed(place, name, {**changes, "save_steps": 10_000}, counted, deadline, [])


def peer_save(place: Place, deadline: float) -> dict[str, Any]:
    """Save once by DeepSpeed's own way and twice by ours, in one run of small steps."""
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "global_batch_size": 1}
    every = 2 if place.sizes.tiny else 100
    changes = {**small, "save_steps": every, "max_steps": 100_000}
    figures = _observed(place, "peer-save", changes, product.has_saves(2), deadline, ["--peer"])
    product.forget_checkpoints(place.home / "peer-save")
    return figures


def peer(place: Place, name: str, deadline: float) -> dict[str, Any]:
    """Train one of the stock ways with the model and the rows of the default run, at its micro-batch."""
    if not (place.home / "prepared").exists():
        _observed(place, "data-only", {}, product.has_step(1), deadline, [])
    micro = product.plan_for(place.sizes, place.home, "same").batch.micro_batch_size
    out = place.home / f"{name}.json"
    command = [sys.executable, "-m", "benchmarks.gpu_day.stock", name, "--sizes", json.dumps(place.sizes._asdict())]
    command += ["--home", str(place.home), "--micro", str(micro), "--out", str(out)]
    code = run(place, command, deadline)
    if code or not out.exists():
        raise Failed(f"exit {code}: {product.last_words(place.log)[-1][:200]}")
    return _rows(out)
