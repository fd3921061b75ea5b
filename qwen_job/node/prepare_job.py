"""Check the suite, fetch the model and prepare the data in a pod without GPUs, then start the training job.

    python3 -m qwen_job.node.prepare_job --config /etc/qwen-job/train.yaml [--word=--task --word=gsm8k]
        [--release pytorchjob/NAME [--queue QUEUE]]

Training finds all in place, so its first step follows soon after its pods start.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_job.data.prepare import ready_rows
from qwen_job.data.sample import sample_texts
from qwen_job.data.sources import local_data
from qwen_job.errors import QwenJobError
from qwen_job.models.resolve import ready_model
from qwen_job.node.release import release
from qwen_job.node.suite_check import add_words, check_suite
from qwen_job.run.config import load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the suite, prepare, release the job, and return an exit code of qwen_job/errors.py."""
    parser = argparse.ArgumentParser(prog="python -m qwen_job.node.prepare_job", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's train.yaml")
    parser.add_argument("--release", metavar="KIND/NAME", help="the suspended job to start afterwards")
    parser.add_argument("--queue", help="submit it to this Kueue queue instead of starting it at once")
    add_words(parser)
    options = parser.parse_args(arguments)
    # PID 1 has no default action for TERM: it would stay for the whole grace period.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    if options.words and (code := check_suite(options.words)):
        return code
    try:
        prepare_job(options.config)
        if options.release:
            kind, _, name = options.release.partition("/")
            release(kind, name, options.queue)
            say(f"{options.release} was {f'submitted to the queue {options.queue}' if options.queue else 'started'}")
    except QwenJobError as error:
        say(str(error))
        return error.exit_code
    return 0


def prepare_job(config_file: Path) -> None:
    """Do the first steps of training: fetch the model and the data, and prepare the data.

    Raises:
        ModelError: the model is invalid or cannot be fetched.
        DataError: the data is invalid.
    """
    config, _ = load_config(config_file)
    config = local_data(config, say)
    model = ready_model(config, sample_texts, say)
    say(f"the model is in {model}")
    say(f"the data is in {ready_rows(config, model, say)}")


def say(text: str) -> None:
    """Print a line for the pod's log."""
    print(f"qwen-job: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
