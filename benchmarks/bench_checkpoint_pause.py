"""How long training stands still for a checkpoint, beside DeepSpeed's own save in the same run.

    python benchmarks/bench_checkpoint_pause.py [--saves 2] [--home DIR]

Ours copies the state to page-locked memory and writes in the background; the peer is the engine's plain save_checkpoint
of the same state, timed in the same process. Both write to the same disk. On a CPU ours waits for the disk too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import train_runs


def main() -> None:
    """Run with a save every few steps and print both sides."""
    if os.environ.get("BENCH_WORKER"):
        worker()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=2, help="stop after N saves; the first one is the slowest")
    parser.add_argument("--home", type=Path, help="a folder that keeps the model and the data for another run")
    options = parser.parse_args()
    os.environ["BENCH_WORKER"] = "1"
    gpu = train_runs.on_gpu()
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        train_runs.sys.executable = write_wrapper(home)
        lines = train_runs.run(
            home / "pause",
            until=lambda lines: sum(line["type"] == "save" for line in lines) >= options.saves,
            training__per_device_train_batch_size=1,
            training__gradient_accumulation_steps=1,
            training__max_steps=100_000 if gpu else 4 * options.saves,
            training__save_steps=100 if gpu else 4,
            training__save_total_limit=1,
        )
        if lines[0]["type"] == "failed":
            raise SystemExit(lines[0]["reason"])
        report(lines, json.loads((home / "pause" / "peer.json").read_text()))


def write_wrapper(home: Path) -> str:
    """Return a command that runs Python with this file's changes to the trainer."""
    path = home / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def worker() -> None:
    """Run the launcher or the trainer that the arguments name, with the peer's save added to the first of ours."""
    import runpy

    words = [word for word in sys.argv[1:] if word != "-u"]
    module, sys.argv = words[1], [words[1], *words[2:]]
    if module == "qwen_job.train":
        add_peer()
    else:
        sys.executable = str(Path(sys.argv[-1]).parents[1] / "python")
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def add_peer() -> None:
    """Time DeepSpeed's own save before our first one."""
    import shutil
    import time

    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    from qwen_job.train.saver import Saver

    save = Saver.save

    def both(self: Saver) -> None:
        path = self.checkpointer.folder.with_name("peer.json")
        if not path.exists():
            engine, ours = self.engine, self.engine.checkpoint_engine
            engine.checkpoint_engine = TorchCheckpointEngine()
            started = time.perf_counter()
            engine.save_checkpoint(str(path.with_suffix("")), tag="peer", save_latest=False)
            path.write_text(json.dumps({"seconds": time.perf_counter() - started}))
            engine.checkpoint_engine = ours
            shutil.rmtree(path.with_suffix(""))
        save(self)

    Saver.save = both  # type: ignore[method-assign]


def report(lines: list[dict[str, Any]], peer: dict[str, float]) -> None:
    """Print the pauses, and the pace of training while files are written."""
    saves = [line for line in lines if line["type"] == "save"]
    steps = [line for line in lines if line["type"] == "step"]
    print(f"\n{train_runs.device_name()}, {saves[-1]['bytes'] / 2**30:.2f} GiB a checkpoint\n")
    print("| save | training stands still | written, synced, hashed after | a step meanwhile |\n|---|---|---|---|")
    writing = [(line["time"] - line["seconds"], line["time"]) for line in saves]
    for line, window in zip(saves, writing, strict=True):
        pace = paces(steps, [window])
        print(f"| ours, step {line['step']} | {line['pause_seconds']:.2f} s | {line['seconds']:.2f} s | {pace} |")
    print(f"| DeepSpeed's save_checkpoint | {peer['seconds']:.2f} s | not synced, no hashes | |")
    print(f"\nOther steps: {paces(steps, writing, inside=False)}")


def paces(steps: list[dict[str, Any]], windows: list[tuple[float, float]], inside: bool = True) -> str:
    """Return the median time of the steps inside the windows, or outside them."""
    chosen = [
        line["step_seconds"]
        for line in steps[5:]
        if inside == any(start < line["time"] - line["step_seconds"] and line["time"] < end for start, end in windows)
    ]
    return f"{train_runs.median(chosen):.3f} s" if chosen else ""


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
