"""One attempt of a run from top to bottom: prepare, train, export."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_job.report.closing import write_pages
from qwen_job.report.summary import against_plan
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.launched import AFTER, restarts
from qwen_job.run.manifest import newest_step
from qwen_job.run.metrics import read_metrics
from qwen_job.run.signals import StopRequest
from qwen_job.text import duration
from qwen_job.train.remembered import find_remembered, neighbourhood
from qwen_job.train.rendezvous import Place, join, once, tell
from qwen_job.train.runlog import RunLog
from qwen_job.train.save_interval import history_of
from qwen_job.train.settings_diff import settings_text
from qwen_job.train.trackers import start_trackers
from qwen_job.train.watchdog import Watchdog

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from qwen_job.train.trainer import Trainer

_WHILE_EXPORTING = "while the model was exported: every step is saved; run the same job again to export it"


def train(
    config: TrainConfig, deepspeed: DeepSpeedConfig, place: Place, store: Store, stop_request: StopRequest, log: RunLog
) -> None:
    """Prepare, train, export."""
    started = time.time()
    # Until the first step begins, a signal ends whatever runs here.
    with stop_request.interrupting():
        join(place, store, config.device)
        # Trackers, model and data are made by one process while the others poll.
        log.heartbeat("preparing")
        tell(store, "trackers", place.is_first, lambda: _report_to(config, log))
        local = functools.cache(lambda: _local(config, log))
        model_folder = once(place, store, "model", lambda: _model(local(), log))
        prepared = once(place, store, "data", lambda: _data(local(), model_folder, log))

        # Imported late: a wrong setting should not cost these seconds.
        from qwen_job.train.resume import choose_checkpoint, identify
        from qwen_job.train.setup import Attempt, build_trainer, hardware, load

        around, remembered, history = None, None, None
        if every := config.training.memory_save_steps:
            around = neighbourhood(config.output_dir, place, store, deepspeed, every, log.say)
        if around is not None:
            history = history_of(read_metrics(config.output_dir)) if place.is_first else None
            remembered = find_remembered(around, newest_step(config.output_dir), log.say)
        beginning = choose_checkpoint(
            config, deepspeed, place, store, log, lambda: identify(config, prepared, model_folder), remembered
        )
        resumed = beginning.resume
        if resumed is not None and resumed.universal:
            deepspeed = {**deepspeed, "checkpoint": {**deepspeed.get("checkpoint", {}), "load_universal": True}}
        seconds, folder = config.guards.hang_seconds, config.folder.logs
        watchdog = Watchdog(store, place.rank, place.world_size, seconds, folder, config.sequence_parallel_size)
        watchdog.loading()
        attempt = Attempt(config, deepspeed, place, store, stop_request, log, around, history)
        loaded = load(attempt, model_folder, prepared, resumed)
        step = resumed.step if resumed else None
        log.write(
            "start",
            step or 0,
            attempt=log.attempt,
            world_size=place.world_size,
            sequence_parallel_size=config.sequence_parallel_size,
            resumed_from=step,
            from_memory=resumed is not None and resumed.in_memory,
            host=os.uname().nodename,
            hardware=hardware(config.device),
            **restarted(),
        )
        trainer = build_trainer(attempt, loaded, beginning, watchdog)
        # The collector's pauses grow with the number of live objects; these stay for good.
        gc.collect()
        gc.freeze()
        trainer.train()
    finish(trainer, deepspeed, model_folder, started)


def finish(trainer: Trainer, deepspeed: DeepSpeedConfig, model_folder: Path, started: float) -> None:
    """Write model/ and, last of all, done.json."""
    from qwen_job.train.export import export, write_done

    config, log, state = trainer.config, trainer.log, trainer.state
    log.heartbeat("saving", state.global_step)
    trainer.parts.watchdog.rest()
    trainer.take_best_weights()
    saved = trainer.saver.saved == state.global_step
    with trainer.parts.stop_request.interrupting(_WHILE_EXPORTING) if saved else contextlib.nullcontext():
        export(trainer, deepspeed, model_folder, config.folder.model)
    step, seconds = state.global_step, time.time() - started
    log.write("end", step, train_seconds=seconds, **(against_plan(config.output_dir) if log.active else {}))
    if log.active:
        write_pages(config.output_dir, log.say)
        lines = read_metrics(config.output_dir)
        losses = {line["step"]: line["loss"] for line in lines if line["type"] == "step"}
        # Of an earlier attempt, where this one had nothing left to train.
        evaluated = [line["loss"] for line in lines if line["type"] == "eval"]
        done = {
            "step": step,
            "total_steps": state.max_steps,
            "train_loss": sum(losses.values()) / max(1, len(losses)),
            "eval_loss": trainer.eval_loss if trainer.eval_loss is not None else next(reversed(evaluated), None),
            "train_seconds": seconds,
            "model": "model",
            "settings": json.loads(settings_text(config)),
            "finished": time.time(),
        }
        log.guard()
        write_done(config.folder.done, done)
    log.heartbeat("done", step)
    log.say(f"done: {step} steps in {duration(seconds)}, the model is in {config.folder.model}")


def restarted() -> dict[str, Any]:
    """Return what an attempt that the launcher restarted in place adds to its ``start`` line: which one, after what."""
    return {"in_place": number, "after": os.environ.get(AFTER, "")} if (number := restarts()) else {}


def _report_to(config: TrainConfig, log: RunLog) -> str:
    config.training.report_to = start_trackers(config, log.say)
    return ""


def _local(config: TrainConfig, log: RunLog) -> TrainConfig:
    from qwen_job.data.sources import local_data

    return local_data(config, log.say)


def _model(config: TrainConfig, log: RunLog) -> Path:
    from qwen_job.data.sample import sample_texts
    from qwen_job.models.resolve import ready_model

    return ready_model(config, sample_texts, log.say)


def _data(config: TrainConfig, model_folder: Path, log: RunLog) -> Path:
    from qwen_job.data.prepare import ready_rows

    return ready_rows(config, model_folder, log.say)
