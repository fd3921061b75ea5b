"""What a GPU shows in twelve minutes: correctness, speed beside the stock ways, saves, memory, a profile.

    python -m benchmarks.gpu_day                      all tasks, by priority, into runs/gpu-day
    python -m benchmarks.gpu_day --pack               here, with a network: wheels for a machine that has none
    python -m benchmarks.gpu_day --only default,liger
    python -m benchmarks.gpu_day --tiny               rehearse on a CPU
    python -m benchmarks.gpu_day --fit                the plan's memory constants, from the peaks in --out

Results are in results.json and tables.md below --out; running it again there continues with what is missing. On a
machine that starts empty, copy results.json back into --out first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import wheels
from benchmarks.gpu_day.day import ROOT, Results, commit, run_day


def main(words: list[str]) -> int:
    """Pack, or run a day."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-day", help="where results go, and come from")
    parser.add_argument("--home", type=Path, help="scratch for models and checkpoints (40 GB); default: temporary")
    parser.add_argument("--seconds", type=float, default=720, help="end in time (default: 720)")
    parser.add_argument("--only", default="", help="these tasks, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU: shows that everything runs")
    parser.add_argument("--pack", action="store_true", help="download what a machine without a network needs")
    parser.add_argument("--python", default="3.12", help="that machine's Python (with --pack)")
    parser.add_argument("--fit", action="store_true", help="fit the plan's memory constants to the peaks in --out")
    options = parser.parse_args(words)
    if options.fit:
        print(fit_of(options.out))
        return 0
    if options.pack:
        print("\n".join(wheels.pack(options.python)))
        return 0
    began = float(os.environ.get(wheels.ACTIVE) or time.monotonic())
    if told := wheels.activate():
        say(told)
    return day(options, began)


def day(options: argparse.Namespace, began: float) -> int:
    """Run the tasks and write the tables; exit code 1 if a task failed."""
    from benchmarks.gpu_day import product, tables, tasks  # the machine may lack their packages before ``activate``

    sizes, machine = (product.TINY, {"gpu": "CPU"}) if options.tiny else probe()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.json", {**machine, "commit": commit()})
    if told := results.resume():
        say(told)
    with scratch(options.home) as home, sampling(out, active=not options.tiny):
        place = tasks.Place(out, home, sizes, results)
        chosen = [task for task in tasks.all_tasks(place) if options.only == "" or task.name in options.only.split(",")]
        run_day(chosen, results, options.seconds - (time.monotonic() - began), say)
    text = tables.report(results.machine, results.tasks)
    (out / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    return int(any(task["state"] == "failed" for task in results.tasks.values()))


def fit_of(out: Path) -> str:
    """Return the fit to the results in ``out``, of whatever GPU and code.

    Raises:
        SystemExit: there are none.
    """
    from benchmarks.gpu_day import fit
    from benchmarks.gpu_day.product import full_sizes

    path = out / "results.json"
    if not path.exists():
        raise SystemExit(f"{path}: does not exist; run a day first")
    found = json.loads(path.read_text(encoding="utf-8"))
    machine, rows = found["machine"], found["tasks"].get("peaks", {}).get("figures", {})
    sizes = full_sizes(machine["gpu"], machine["memory_gib"], machine["capability"])
    return fit.report(fit.measured(rows, sizes, out))


def probe() -> tuple[Any, dict[str, Any]]:
    """Return the sizes for this GPU, and what it is.

    Raises:
        SystemExit: nvidia-smi shows no GPU.
    """
    from benchmarks.gpu_day.product import full_sizes

    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        line = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
        name, mebibytes, capability, driver = (word.strip() for word in line.split(","))
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        raise SystemExit("nvidia-smi shows no GPU; --tiny rehearses on a CPU") from None
    known = {"memory_gib": float(mebibytes) / 1024, "capability": float(capability)}
    return full_sizes(name, **known), {"gpu": name, "driver": driver, **known}


def say(text: str) -> None:
    """Print a line at once."""
    print(f"gpu-day: {text}", flush=True)


@contextlib.contextmanager
def scratch(given: Path | None) -> Iterator[Path]:
    """Yield the folder for models and checkpoints; a temporary one is removed."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="gpu-day-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def sampling(out: Path, *, active: bool) -> Iterator[None]:
    """Write clocks, power and use of the GPU every second beside the results."""
    if not active:
        yield
        return
    with (out / "dmon.txt").open("a") as file:
        process = subprocess.Popen(["nvidia-smi", "dmon", "-s", "pucm", "-o", "T"], stdout=file, stderr=file)
        try:
            yield
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
