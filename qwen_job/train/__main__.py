"""python -m qwen_job.train --config RUN/train.yaml, or the command line of QwenLM's finetune.py.

Runs on every rank, under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_job.errors import QwenJobError, StoppedAndSaved, UsageError
from qwen_job.report.summary import against_plan
from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.run.launched import CHANNEL, ROLE, STORE, TEMPLATE, name_process
from qwen_job.run.lease import Lease, owner_name
from qwen_job.run.metrics import read_metrics
from qwen_job.run.signals import StopRequest, TimeLimit, leave_now
from qwen_job.train import attempt, failures, template
from qwen_job.train.failures import say
from qwen_job.train.read_settings import keep, read_settings
from qwen_job.train.rendezvous import Place, before_torch, meet, place_from_environment, speak_once, tell
from qwen_job.train.runlog import RunLog
from qwen_job.train.settings_diff import is_complete
from qwen_job.train.trackers import close_trackers

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# How long the other ranks wait for rank 0 to report a stop.
_STOP_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Train, and return the exit code of the table in qwen_job/errors.py."""
    place: Place | None = None
    lease: Lease | None = None
    try:
        place = place_from_environment()
        config, deepspeed, notes = read_settings(arguments, place)
        # One clock decides: the ranks follow rank 0.
        stop_request = StopRequest(TimeLimit(config.output_dir, config.stop.grace_seconds) if place.is_first else None)
        if is_complete(config):
            if place.is_first:
                say(f"{config.output_dir} is complete (done.json): nothing to do")
            return 0
        stop_request.listen()
        if place.is_first:
            with stop_request.interrupting():
                lease = take_lease(config.output_dir)
            keep(arguments, config, deepspeed)
    except (QwenJobError, OSError) as failure:
        error = failure if isinstance(failure, QwenJobError) else failures.storage(failure)
        if error is None:
            raise
        if place is not None and place.local_rank:
            # The node's first rank fails on the same files, and the launcher then ends this one.
            time.sleep(failures.MANNERS_SECONDS)
        return _complain(error)
    log: RunLog | None = None
    store: Store | None = None
    try:
        log = RunLog(config.output_dir, active=place.is_first, guard=lease.check if lease else lambda: None)
        stop_request.leaving = _leaving(config, log, place)
        log.heartbeat("starting")
        for note in notes:
            log.say(note)
        before_torch(config.device, config.torch_compile)
        with stop_request.interrupting():
            store = meet(place, float(os.environ.get("QWEN_JOB_RENDEZVOUS_SECONDS", "60")))
            tell(store, "stay", place.is_first, stop_request.leave_if_heard)
        attempt.train(config, deepspeed, place, store, stop_request, log)
        if log.active:
            close_trackers(0)
        return 0
    except Exception as error:
        return _end(error, config, deepspeed, store, log)
    finally:
        if lease is not None:
            lease.release()


def take_lease(run: Path) -> Lease:
    """Become the only writer of ``run``. Rank 0 only.

    Raises:
        UsageError: another job trains there.
    """

    def lost(owner: str) -> None:
        who = "a newer attempt of this job" if owner == owner_name() else owner
        say(f"output: {who} has taken over {run}: this process stops, so that only one of them writes")
        leave_now(UsageError.exit_code)

    lease = Lease(run, lost)
    lease.take(say)
    return lease


def _end(
    error: Exception, config: TrainConfig, deepspeed: DeepSpeedConfig, store: Store | None, log: RunLog | None
) -> int:
    """Report what happened, also in the run folder, and return its exit code."""
    # A data worker that ends from now on must not raise here.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    known = failures.classify(error, config, deepspeed)
    if log is not None:
        log.close()
    stopped = isinstance(known, StoppedAndSaved)
    if known is None:
        code, reason, state = 1, f"{type(error).__name__}: {error}", "failed"
    else:
        code, reason, state = known.exit_code, str(known), "stopped" if stopped else "failed"

    def speak() -> None:
        if known:
            say(known)
        else:
            print("".join(traceback.format_exception(error)).rstrip(), file=sys.stderr, flush=True)

    active = log is not None and log.active
    if log is not None and log.active:
        steps = [line["step"] for line in read_metrics(config.output_dir) if "step" in line]
        # If the storage is the reason, nothing can be written there.
        with contextlib.suppress(OSError):
            compared = against_plan(config.output_dir)
            log.write("stop", max(steps, default=0), reason=reason, exit_code=code, **compared)
            log.heartbeat(state, max(steps, default=0))
    # Rank 0 reports a stop, even before the ranks have met; a failure is reported by the first rank that has it.
    if stopped:
        speak_once(store, "stop", speak, active, _STOP_SECONDS)
    else:
        speak_once(store, reason, speak)
    if active:
        close_trackers(code)
    return code


def _leaving(config: TrainConfig, log: RunLog, place: Place) -> Callable[[StoppedAndSaved], None]:
    """Return what reports a stop request that ends the process from another thread."""

    def leave(error: StoppedAndSaved) -> None:
        if not place.is_first:
            return
        say(error)
        with contextlib.suppress(OSError):
            step = max((line["step"] for line in read_metrics(config.output_dir) if "step" in line), default=0)
            log.write("stop", step, reason=str(error), exit_code=error.exit_code)
            log.heartbeat("stopped", step)

    return leave


def _complain(error: QwenJobError) -> int:
    say(error)
    return error.exit_code


def start(arguments: list[str]) -> int:
    """Be what the launcher asks for: a rank, the process that ranks are forked from, or the store that they meet in."""
    role = os.environ.get(ROLE)
    if role == STORE:
        template.keep_store(socket.socket(fileno=int(os.environ[CHANNEL])))
    if role == TEMPLATE:
        template.serve(arguments, rank)
        return 0
    return rank(arguments)


def rank(arguments: list[str]) -> int:
    """Train as the rank that RANK names, and return the exit code."""
    name_process(f"qwen-rank-{os.environ.get('RANK', '0')}")
    return main(arguments)


if __name__ == "__main__":
    code = start(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Other ranks may still be in a collective with us; destroying the group could wait for them forever.
    os._exit(code)
