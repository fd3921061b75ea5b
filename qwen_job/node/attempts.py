"""Count attempts without a newer checkpoint where no scheduler does: in a pod.

Kubernetes operators restart pods without checking for progress, a PyTorchJob's without any limit. So the launcher of
the first node counts in ``launch/tries.json`` of the run folder, and exits with the final code of NoProgress.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from qwen_job import strict_json
from qwen_job.atomic import write_atomically
from qwen_job.errors import NoProgress, StoppedAndSaved, is_retryable
from qwen_job.run.ends import MEMORY_ADVICE, last_words
from qwen_job.run.folder import RunFolder
from qwen_job.run.manifest import newest_step
from qwen_job.run.states import newest_remembered


def begin(run: Path, most: int) -> None:
    """Record the start of an attempt.

    Raises:
        NoProgress: ``most`` attempts in a row wrote no checkpoint; the count is reset.
    """
    step, before, fruitless = max(newest_step(run), newest_remembered(run)), *_read(run)
    fruitless = fruitless + 1 if before is not None and step <= before else 0
    if fruitless >= most:
        _forget(run)
        known = last_words(run)
        why = f"{known}: {MEMORY_ADVICE}" if known else "see the last attempt's log"
        newer = f" newer than step {step}" if step >= 0 else ""
        raise NoProgress(
            f"{fruitless} attempts in a row wrote no checkpoint{newer} (retry.max_without_progress): {why}; "
            "restarting the job resets this count"
        )
    _write(run, step, fruitless)


def end(run: Path, exit_code: int, *, signalled: bool) -> None:
    """Record how the attempt ended. One stopped from outside does not count; a final exit code resets the count."""
    if not is_retryable(exit_code):
        _forget(run)
    elif signalled or exit_code == StoppedAndSaved.exit_code:
        step, fruitless = _read(run)
        if step is not None:
            _write(run, step, fruitless - 1)


def _read(run: Path) -> tuple[int | None, int]:
    try:
        value = strict_json.load(RunFolder(run).attempts)
        return int(value["step"]), int(value["fruitless"])
    except (OSError, ValueError, TypeError, KeyError):
        return None, 0


def _write(run: Path, step: int, fruitless: int) -> None:
    """Write the count; failing storage is for the trainer to report, and an uncounted attempt does no harm."""
    text = json.dumps({"step": step, "fruitless": fruitless})
    with contextlib.suppress(OSError):
        write_atomically(RunFolder(run).attempts, text)


def _forget(run: Path) -> None:
    try:
        RunFolder(run).attempts.unlink(missing_ok=True)
    except OSError:
        return
