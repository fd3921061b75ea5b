"""python -m benchmarks.gpu_day.observed [--profile STEP] [--peer] -- ARGUMENTS: qwen_job.train, watched.

Writes observed.json into the run folder: what the allocator and the driver hold after every step; with ``--profile``
the table of that step's profile, whose trace goes beside it; with ``--peer`` the time of DeepSpeed's own
``save_checkpoint`` of the same state, before our first save.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_day import trace
from qwen_job.train import __main__ as trainer_main
from qwen_job.train.rendezvous import quiet_deepspeed

if TYPE_CHECKING:
    from qwen_job.train.trainer import Trainer


class Observer:
    """Follows a trainer's steps and writes what it sees."""

    def __init__(self, trainer: Trainer, profiled: int | None) -> None:
        self.folder = trainer.config.output_dir
        self.profiled = profiled
        self.seen: dict[str, Any] = {}
        self.profiler: torch.profiler.profile | None = None
        self._record = trainer.log.step
        trainer.log.step = self.step  # type: ignore[method-assign]

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Look before the trainer reports a step: whoever waits for its line may end the run then."""
        if self.profiler is not None:
            self._finish_profile()
        self.look()
        self._record(step, values)
        if step + 1 == self.profiled:
            self._begin_profile()

    def look(self) -> None:
        """Note what is held; a call of the driver takes microseconds."""
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            self.seen["reserved_bytes"] = torch.cuda.max_memory_reserved()
            self.seen["device_bytes"] = max(self.seen.get("device_bytes", 0), total - free)
        self.write()

    def write(self) -> None:
        """Write what was seen so far."""
        (self.folder / "observed.json").write_text(json.dumps(self.seen))

    def _begin_profile(self) -> None:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profiler = torch.profiler.profile(activities=kinds)
        self.profiler.start()

    def _finish_profile(self) -> None:
        assert self.profiler is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.profiler.stop()
        path = self.folder / "trace.json.gz"
        self.profiler.export_chrome_trace(str(path))
        self.profiler = None
        self.seen["profile"] = trace.summary(trace.read(path))


def add_peer(observer: Observer) -> None:
    """Time DeepSpeed's own save before our first one."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    from qwen_job.train.saver import Saver

    save = Saver.save

    def both(self: Saver, *, wait: bool = False) -> None:
        if "peer_save_seconds" not in observer.seen:
            engine, ours = self.engine, self.engine.checkpoint_engine
            folder = observer.folder / "peer"
            engine.checkpoint_engine = TorchCheckpointEngine()
            started = time.perf_counter()
            engine.save_checkpoint(str(folder), tag="peer", save_latest=False)
            observer.seen["peer_save_seconds"] = time.perf_counter() - started
            observer.write()
            engine.checkpoint_engine = ours
            shutil.rmtree(folder)
        save(self, wait=wait)

    Saver.save = both  # type: ignore[method-assign]


def main(words: list[str]) -> int:
    """Train, watched; returns the exit code."""
    split = words.index("--")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=int, help="the step to profile")
    parser.add_argument("--peer", action="store_true", help="time DeepSpeed's own save, too")
    options = parser.parse_args(words[:split])
    quiet_deepspeed("cuda" if torch.cuda.is_available() else "cpu")
    from qwen_job.train import setup  # imports DeepSpeed, which must be quiet by then

    build = setup.build_trainer

    def watched(*given: Any) -> Trainer:
        trainer = build(*given)
        observer = Observer(trainer, options.profile)
        if options.peer:
            add_peer(observer)
        return trainer

    setup.build_trainer = watched  # type: ignore[assignment]
    return trainer_main.main(words[split + 1 :])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    os._exit(main(sys.argv[1:]))
