"""Train on a node, then evaluate the model on the first one: what a pod runs whose job has ``evaluate``.

    python -m qwen_job.node.evaluating --word=--task --word=gsm8k -- LAUNCHER_ARGUMENTS

The words are those of ``qwen-job evaluate`` after the run folder; ``{run}`` at the start of one is that folder. The
suite is checked before the training. A restarted pod of a complete run trains nothing and evaluates again.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from qwen_job import strict_yaml
from qwen_job.facts.suites import CHECKED
from qwen_job.node import launcher
from qwen_job.node.generations import say
from qwen_job.run.folder import RunFolder

RUN = "{run}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the suite, train, evaluate, and return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m qwen_job.node.evaluating", description=__doc__)
    parser.add_argument("--word", dest="words", action="append", default=[], help="of 'qwen-job evaluate RUN'")
    parser.add_argument("launcher", nargs=argparse.REMAINDER, help="-- arguments of qwen_job.node.launcher")
    options = parser.parse_args(arguments)
    launched = options.launcher[1:]
    rank = launched[launched.index("--node_rank") + 1]
    run = Path(strict_yaml.load(Path(launched[launched.index("--config") + 1]))["output_dir"])
    words = [f"{run}{word.removeprefix(RUN)}" if word.startswith(f"{RUN}/") else word for word in options.words]
    if rank == "0" and (check := _check_words(words)) and (code := _evaluate(["--check", *check])):
        return code
    code = launcher.main(launched)
    if code or rank != "0" or not RunFolder(run).done.is_file():
        return code
    code = _evaluate([str(run), *words])
    if code:
        say(f"the training is complete, its evaluation failed; to repeat it: qwen-job evaluate {run} ...")
    return code


def _check_words(words: Sequence[str]) -> list[str]:
    """Return the options of the suite, without those of the data; empty without a suite."""
    found = [words[at : at + 1 + CHECKED[word]] for at, word in enumerate(words) if word in CHECKED]
    return [word for option in found for word in option]


def _evaluate(words: Sequence[str]) -> int:
    """Run ``qwen-job evaluate``; a TERM ends it, since the first process of a container has no default action."""
    with subprocess.Popen([sys.executable, "-m", "qwen_job", "evaluate", *words]) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
