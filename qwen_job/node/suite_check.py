"""Check the benchmark suite on the first node, then train: what a pod runs whose job has ``evaluate.suite``.

    python -m qwen_job.node.suite_check --word=--task --word=gsm8k -- LAUNCHER_ARGUMENTS

The words are options of ``qwen-job evaluate``. What a suite lacks is known before the training, not after it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

from qwen_job.facts.suites import CHECKED
from qwen_job.node import launcher


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the suite, train, and return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m qwen_job.node.suite_check", description=__doc__)
    add_words(parser)
    parser.add_argument("launcher", nargs=argparse.REMAINDER, help="-- arguments of qwen_job.node.launcher")
    options = parser.parse_args(arguments)
    launched = options.launcher[1:]
    rank = launched[launched.index("--node_rank") + 1]
    if rank == "0" and (code := check_suite(options.words)):
        return code
    return launcher.main(launched)


def add_words(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--word``, a word of ``qwen-job evaluate`` each time; the result has them as ``words``."""
    parser.add_argument("--word", dest="words", action="append", default=[], help="of 'qwen-job evaluate RUN'")


def check_suite(words: Sequence[str]) -> int:
    """Load the tasks that words of ``qwen-job evaluate`` name, and their data; return the exit code."""
    return _check(_check_words(words))


def _check_words(words: Sequence[str]) -> list[str]:
    """Return the options of the suite, without those of the data."""
    found = [words[at : at + 1 + CHECKED[word]] for at, word in enumerate(words) if word in CHECKED]
    return [word for option in found for word in option]


def _check(words: Sequence[str]) -> int:
    """Run ``qwen-job evaluate --check``; a TERM ends it: the first process of a container has no default action."""
    with subprocess.Popen([sys.executable, "-m", "qwen_job", "evaluate", "--check", *words]) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
