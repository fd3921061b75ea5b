"""Wait for a training job in a pod without GPUs, then start the suspended Job that evaluates its model.

    python3 -m qwen_job.node.start_evaluation --run RUN --job pytorchjob/NAME --release NAME-evaluate [--queue QUEUE]

A training that fails or is deleted is not evaluated: this pod then fails with a final exit code, as Slurm ends a job
whose dependency is never satisfied.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qwen_job.errors import ClusterRefused, QwenJobError
from qwen_job.node.generations import say
from qwen_job.node.release import ACCOUNT, MOST_REFUSALS, PATIENCE_SECONDS, ask, message_of, release
from qwen_job.run.folder import RunFolder

_PAUSE_SECONDS = 15.0
_DONE, _FAILED = ("Succeeded", "Complete", "Completed"), "Failed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Wait, start the evaluation, and return an exit code of qwen_job/errors.py."""
    parser = argparse.ArgumentParser(prog="python -m qwen_job.node.start_evaluation", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run folder")
    parser.add_argument("--job", required=True, metavar="KIND/NAME", help="the training")
    parser.add_argument("--release", required=True, metavar="NAME", help="the suspended Job that evaluates")
    parser.add_argument("--queue", help="submit it to this Kueue queue instead of starting it at once")
    options = parser.parse_args(arguments)
    # PID 1 has no default action for TERM: it would stay for the whole grace period.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    kind, _, name = options.job.partition("/")
    try:
        wait_for_training(options.run, kind, name)
        release("job", options.release, options.queue)
    except QwenJobError as error:
        say(str(error))
        return error.exit_code
    say(f"{options.release} was {f'submitted to the queue {options.queue}' if options.queue else 'started'}")
    return 0


def wait_for_training(
    run: Path,
    kind: str,
    name: str,
    *,
    account: Path = ACCOUNT,
    patience: float = PATIENCE_SECONDS,
    pause: float = _PAUSE_SECONDS,
) -> None:
    """Return when the training is complete, by the run folder's done.json or the job's own conditions.

    An unreachable server is asked again for as long as it takes.

    Raises:
        ClusterRefused: the training failed, was deleted, did not appear for ``patience`` seconds, or may not be read.
        EnvironmentFault: this is not a pod with a service account token.
    """
    since, seen, refusals = time.monotonic(), False, 0
    while not RunFolder(run).done.is_file():
        status, body = ask(kind, name, account)
        refusals = refusals + 1 if status in (401, 403) else 0
        if refusals > MOST_REFUSALS:
            fix = "give kubernetes.prepare_account a role that may get it"
            raise ClusterRefused(f"may not read {kind}/{name}: {message_of(body)}; {fix}")
        if status == 200 and _is_complete(body, f"{kind}/{name}"):
            return
        seen = seen or status == 200
        if status == 404 and (seen or time.monotonic() - since > patience):
            happened = "was deleted" if seen else f"did not appear within {patience:.0f} s"
            raise ClusterRefused(f"{kind}/{name} {happened}, and {run} has no done.json: nothing to evaluate")
        time.sleep(pause)


def _is_complete(body: bytes, job: str) -> bool:
    """Return whether the job is complete.

    Raises:
        ClusterRefused: it failed.
    """
    try:
        found = json.loads(body)["status"]["conditions"]
        true = {one["type"]: str(one.get("message") or "") for one in found if one["status"] == "True"}
    except (ValueError, KeyError, TypeError):
        return False
    if _FAILED in true:
        raise ClusterRefused(f"{job} failed, so there is nothing to evaluate: {true[_FAILED] or 'no reason given'}")
    return any(kind in true for kind in _DONE)


if __name__ == "__main__":
    sys.exit(main())
