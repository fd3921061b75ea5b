"""python -m qwen_job.train --config RUN/train.yaml, or the command line of QwenLM's finetune.py.

Runs on every rank, under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_job.errors import (
    EnvironmentFault,
    JobError,
    OutOfMemory,
    QwenJobError,
    Retryable,
    StoppedAndSaved,
    UsageError,
)
from qwen_job.run.config import (
    DeepSpeedConfig,
    TrainConfig,
    check_training,
    keep_settings,
    load_config,
    save_config,
)
from qwen_job.run.lease import Lease
from qwen_job.run.signals import StopWish, TimeLimit, leave_now
from qwen_job.text import duration, visible_lines
from qwen_job.train.deepspeed_config import resolve, zero_stage
from qwen_job.train.flags import Hardware, config_from_flags
from qwen_job.train.rendezvous import Place, join, meet, once, place_from_environment, speak_once, tell
from qwen_job.train.runlog import RunLog, read_metrics
from qwen_job.train.settings_diff import is_complete, settings_text
from qwen_job.train.trackers import check_trackers, close_trackers, start_trackers
from qwen_job.train.watchdog import Watchdog

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


def main(arguments: list[str]) -> int:
    """Train, and return the exit code of the table in qwen_job/errors.py."""
    place: Place | None = None
    lease: Lease | None = None
    try:
        place = place_from_environment()
        config, deepspeed, notes = read_settings(arguments, place)
        # One clock decides: the ranks agree on what rank 0 says.
        wish = StopWish(TimeLimit(config.output_dir, config.stop.grace_seconds) if place.is_first else None)
        if is_complete(config):
            if place.is_first:
                _say(f"{config.output_dir} is complete (done.json): nothing to do")
            return 0
        wish.listen()
        if place.is_first:
            with wish.interrupting():
                lease = take_lease(config.output_dir)
            keep(arguments, config, deepspeed)
    except (QwenJobError, OSError) as failure:
        error = failure if isinstance(failure, QwenJobError) else _storage(failure)
        if error is None:
            raise
        if place is not None and place.local_rank:
            # A node's first rank reads the same files, and when it fails the launcher ends this one meanwhile.
            time.sleep(_MANNERS_SECONDS)
        return _complain(error)
    log: RunLog | None = None
    store: Store | None = None
    try:
        log = RunLog(config.output_dir, active=place.is_first)
        wish.leaving = _leaving(config, log, place)
        log.heartbeat("starting")
        for note in notes:
            log.say(note)
        if config.device == "cpu":
            # DeepSpeed compiles functions that are never called here: seconds of importing the compiler.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "0" if config.torch_compile else "1")
        with wish.interrupting():
            store = meet(place, float(os.environ.get("QWEN_JOB_RENDEZVOUS_SECONDS", "60")))
            tell(store, "stay", place.is_first, wish.leave_if_heard)
        train(config, deepspeed, place, store, wish, log)
        if log.active:
            close_trackers(0)
        return 0
    except Exception as error:
        return _end(error, config, deepspeed, store, log)
    finally:
        if lease is not None:
            lease.release()


def take_lease(run: Path) -> Lease:
    """Become the one that writes into ``run``, or say who does. Rank 0 only.

    Raises:
        UsageError: somebody else trains there.
    """

    def lost(owner: str) -> None:
        _say(f"output: {owner} has taken over {run}: this job stops, so that they do not train over each other")
        leave_now(UsageError.exit_code)

    lease = Lease(run, lost)
    lease.take(_say)
    return lease


def keep(arguments: list[str], config: TrainConfig, deepspeed: DeepSpeedConfig) -> None:
    """Leave in the run's folder what trains: the files as they were given, or what the flags came to."""
    if arguments[:1] == ["--config"]:
        keep_settings(Path(arguments[1]).parent, config.output_dir)
    else:
        save_config(config, deepspeed, config.output_dir)


def train(
    config: TrainConfig, deepspeed: DeepSpeedConfig, place: Place, store: Store, wish: StopWish, log: RunLog
) -> None:
    """Prepare, train, export: top to bottom."""
    started = time.time()
    # Until the first step begins, a signal ends whatever is under way here.
    with wish.interrupting():
        join(place, store, config.device)

        def report() -> None:
            config.training.report_to = start_trackers(config, log.say)

        # Trackers, model and data, made by one process while the others poll.
        log.heartbeat("preparing")
        tell(store, "trackers", place.is_first, report)
        model_folder = once(place, store, "model", lambda: _model(config, log))
        prepared = once(place, store, "data", lambda: _data(config, model_folder, log))

        # Imported late: seconds that a wrong setting should not cost.
        from qwen_job.train.setup import build_trainer, choose_checkpoint, identify

        resumed, identity = choose_checkpoint(
            config, zero_stage(deepspeed), place, store, log, lambda: identify(config, prepared, model_folder)
        )
        if resumed is not None and resumed.universal:
            deepspeed = {**deepspeed, "checkpoint": {**deepspeed.get("checkpoint", {}), "load_universal": True}}
        seconds, folder = config.guards.hang_seconds, config.output_dir / "logs"
        watchdog = Watchdog(store, place.rank, place.world_size, seconds, folder)
        watchdog.loading()
        trainer = build_trainer(config, deepspeed, model_folder, prepared, place, wish, watchdog, log, identity)
        log.write(
            "start",
            resumed.step if resumed else 0,
            attempt=log.attempt,
            world_size=place.world_size,
            resumed_from=resumed.step if resumed else None,
            host=os.uname().nodename,
        )
        # The collector's pauses grow with the number of live objects; these stay for good.
        gc.collect()
        gc.freeze()
        if resumed is not None:
            trainer.resume_at(resumed.step)
        trainer.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
    finish(config, trainer, model_folder, wish, log, started)


def finish(config: TrainConfig, trainer: Any, model_folder: Path, wish: StopWish, log: RunLog, started: float) -> None:
    """Write model/ and, last of all, done.json."""
    from qwen_job.report.closing import write_pages
    from qwen_job.report.summary import against_plan
    from qwen_job.train.export import export, write_done

    log.heartbeat("saving", trainer.state.global_step)
    trainer.parts.watchdog.rest()
    trainer.settle_best()
    saved = trainer.saved_step == trainer.state.global_step
    with wish.interrupting(_WHILE_EXPORTING) if saved else contextlib.nullcontext():
        export(trainer, model_folder, config.output_dir / "model")
    step, seconds = trainer.state.global_step, time.time() - started
    log.write("end", step, train_seconds=seconds, **(against_plan(config.output_dir) if log.active else {}))
    if log.active:
        write_pages(config.output_dir, log.say)
        lines = read_metrics(config.output_dir)
        losses = {line["step"]: line["loss"] for line in lines if line["type"] == "step"}
        # Of an earlier attempt, where this one had nothing left to train.
        evaluated = [line["loss"] for line in lines if line["type"] == "eval"]
        done = {
            "step": step,
            "total_steps": trainer.state.max_steps,
            "train_loss": sum(losses.values()) / max(1, len(losses)),
            "eval_loss": trainer.eval_loss if trainer.eval_loss is not None else next(reversed(evaluated), None),
            "train_seconds": seconds,
            "model": "model",
            "settings": json.loads(settings_text(config)),
            "finished": time.time(),
        }
        write_done(config.output_dir / "done.json", done)
    log.heartbeat("done", step)
    log.say(f"done: {step} steps in {duration(seconds)}, the model is in {config.output_dir / 'model'}")


def read_settings(arguments: list[str], place: Place) -> tuple[TrainConfig, DeepSpeedConfig, list[str]]:
    """Read ``--config train.yaml``, or the reference's flags; returns what there is to say about them too."""
    if arguments[:1] == ["--config"] and len(arguments) == 2:
        path = Path(arguments[1])
        config, given = load_config(path)
        source, notes = str(path.with_name("deepspeed.json")), []
        if config.world_size != place.world_size:
            config, note = _other_world(config, place.world_size)
            notes.append(note)
            given = {key: value for key, value in given.items() if key not in _BATCH_KEYS}
    elif not arguments or arguments[0] in ("-h", "--help"):
        raise UsageError("usage: python -m qwen_job.train --config RUN/train.yaml, or finetune.py's flags")
    else:
        config, given, notes = config_from_flags(arguments, _hardware(), place.world_size)
        source = "--deepspeed"
    check_training(config)
    check_trackers(config)
    deepspeed, changes = resolve(config, given, source)
    return config, deepspeed, [*notes, *changes]


_MANNERS_SECONDS = 2.0
# How long the other ranks wait for rank 0 to tell of a stop.
_STOP_SECONDS = 1.0
_WHILE_EXPORTING = "while the model was exported: every step is saved, and running the same job again exports it"
_BATCH_KEYS = ("train_batch_size", "gradient_accumulation_steps")


def _other_world(config: TrainConfig, world_size: int) -> tuple[TrainConfig, str]:
    """Keep the global batch on another number of ranks, so that the run means the same."""
    rows, micro = config.global_batch_size, config.training.per_device_train_batch_size
    accumulation, rest = divmod(rows, micro * world_size)
    if rest or not accumulation:
        raise UsageError(
            f"train.yaml was planned for {config.world_size} ranks, {world_size} are running, and the global batch "
            f"of {rows} does not divide by {world_size} x {micro}: plan the job again for {world_size} ranks"
        )
    changed = config.model_copy(deep=True)
    changed.world_size = world_size
    changed.training.gradient_accumulation_steps = accumulation
    return changed, (
        f"planned for {config.world_size} ranks, running on {world_size}: gradient_accumulation_steps becomes "
        f"{accumulation}, the global batch stays {rows}"
    )


def _hardware() -> Hardware:
    import torch

    if not torch.cuda.is_available():
        return Hardware("cpu", None, False)
    import importlib.util

    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    return Hardware("cuda", torch.cuda.get_device_capability(), has_varlen)


def _model(config: TrainConfig, log: RunLog) -> Path:
    from qwen_job.data.sample import sample_texts
    from qwen_job.models import ModelSpec, ensure_model

    data = [Path(item["path"]) for item in config.data.get("train", [])]
    return ensure_model(
        ModelSpec.from_dict(config.model),
        output_dir=config.output_dir,
        texts=lambda: sample_texts(data),
        progress=log.say,
    )


def _data(config: TrainConfig, model_folder: Path, log: RunLog) -> Path:
    from qwen_job.data import DataSpec, open_prepared, prepare_data
    from qwen_job.data.prepared import describe

    spec = DataSpec.from_dict(config.data)
    cache = spec.cache_dir or config.output_dir / "prepared"
    folder = prepare_data(spec, model_folder, cache, workers=spec.num_workers)
    for line in describe(open_prepared(folder).stats):
        log.say(f"data: {line}")
    return folder


def _end(
    error: Exception, config: TrainConfig, deepspeed: DeepSpeedConfig, store: Store | None, log: RunLog | None
) -> int:
    """Say what happened, leave it in the run folder, and return its exit code."""
    # A data worker that ends from here on must not raise into this.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    known: QwenJobError | None = error if isinstance(error, QwenJobError) else None
    known = known or _out_of_memory(error, config, deepspeed) or _storage(error) or _other_model(error, config)
    known = known or _deepspeed_refuses(error)
    known = known or _lost_peer(error)
    if log is not None:
        log.close()
    stopped = isinstance(known, StoppedAndSaved)
    if known is None:
        code, reason, state = 1, f"{type(error).__name__}: {error}", "failed"
    else:
        code, reason, state = known.exit_code, str(known), "stopped" if stopped else "failed"

    def speak() -> None:
        if known:
            _say(known)
        else:
            print("".join(traceback.format_exception(error)).rstrip(), file=sys.stderr, flush=True)

    active = log is not None and log.active
    if log is not None and log.active:
        steps = [line["step"] for line in read_metrics(config.output_dir) if "step" in line]
        # Where the storage is the reason, nothing can be left there.
        with contextlib.suppress(OSError):
            from qwen_job.report.summary import against_plan

            compared = against_plan(config.output_dir)
            log.write("stop", max(steps, default=0), reason=reason, exit_code=code, **compared)
            log.heartbeat(state, max(steps, default=0))
    # A stop is rank 0's to tell, also where the ranks have not met; of failures in the same words the first is enough.
    if stopped:
        speak_once(store, "stop", speak, active, _STOP_SECONDS)
    else:
        speak_once(store, reason, speak)
    if active:
        close_trackers(code)
    return code


def _leaving(config: TrainConfig, log: RunLog, place: Place) -> Callable[[StoppedAndSaved], None]:
    """Return what is left in the run's folder when a stop request ends the process from another thread."""

    def leave(error: StoppedAndSaved) -> None:
        if not place.is_first:
            return
        _say(error)
        with contextlib.suppress(OSError):
            step = max((line["step"] for line in read_metrics(config.output_dir) if "step" in line), default=0)
            log.write("stop", step, reason=str(error), exit_code=error.exit_code)
            log.heartbeat("stopped", step)

    return leave


_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_PASSING = (errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT)


def _storage(error: Exception) -> QwenJobError | None:
    """Tell storage that is full, which a person must change, from storage that is away for a while."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError):
        return None
    where = f"{error.filename2 or error.filename or 'the output folder'}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(f"{where}: make room, then run the job again; it goes on from the last save")
    if error.errno in _FORBIDDEN:
        return EnvironmentFault(f"{where}: correct it, or give the job another output, then run the job again")
    if error.errno in _PASSING:
        return Retryable(f"{where}; running the same job again goes on from the last save")
    return None


def _out_of_memory(error: Exception, config: TrainConfig, deepspeed: DeepSpeedConfig) -> OutOfMemory | None:
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and "out of memory" not in text.lower():
        return None
    from qwen_job.train.guards import gpu_memory, oom_message

    peak, capacity = gpu_memory()
    return OutOfMemory(oom_message(config, deepspeed, text[:160], peak, capacity))


def _other_model(error: Exception, config: TrainConfig) -> JobError | None:
    """Tell a checkpoint of another model from what goes wrong inside torch."""
    if "size mismatch" not in str(error) and "loading state_dict" not in str(error):
        return None
    return JobError(
        f"output: {config.output_dir} holds checkpoints of another model than {config.model.get('name')}: write "
        f"another output, or the model that it was begun with ({' '.join(str(error).split())[:160]})"
    )


def _deepspeed_refuses(error: Exception) -> JobError | None:
    """Tell a value that DeepSpeed's own configuration refuses from a fault of ours."""
    import pydantic

    if not isinstance(error, pydantic.ValidationError) or not error.title.startswith("DeepSpeed"):
        return None
    found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
    return JobError(f"deepspeed.json ({error.title}): {'; '.join(found)[:500]}: correct deepspeed.config")


def _lost_peer(error: Exception) -> Retryable | None:
    """Tell a rank that failed by itself from one whose partner, or data worker, went away."""
    text = " ".join(str(error).split())
    if "DataLoader worker" in text:
        return Retryable(f"a data worker died ({text[:200]}); running the same job again goes on from the last save")
    if not any(sign in text for sign in ("gloo", "NCCL", "Connection closed by peer", "Connection reset")):
        return None
    # The rank that failed first has the reason: let the launcher see it first.
    time.sleep(_MANNERS_SECONDS)
    return Retryable(f"another rank went away ({text[:200]}); running the same job again goes on from the last save")


def _say(text: object) -> None:
    """Print to standard error what a terminal may see: names and texts may come from shared folders."""
    print(f"qwen-job: {visible_lines(text)}", file=sys.stderr, flush=True)


def _complain(error: QwenJobError) -> int:
    _say(error)
    return error.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Other ranks may still be in a collective with us; tearing the group down could wait for them for ever.
    os._exit(code)
