"""Counting tries that brought no newer checkpoint, where nothing outside counts them: in a pod.

The operators start pods again without asking whether that helps, and a PyTorchJob's without any limit. So the first
node's launcher keeps count beside the run, in ``launch/tries.json``, and ends with the final code of NoProgress.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from qwen_job import strict_json
from qwen_job.atomic import write_atomically
from qwen_job.errors import NoProgress, StoppedAndSaved, is_retryable
from qwen_job.run.ends import MEMORY_ADVICE, last_words


def begin(run: Path, most: int) -> None:
    """Note that a try begins.

    Raises:
        NoProgress: ``most`` tries in a row ended without a newer checkpoint; the count then starts anew.
    """
    step, before, fruitless = newest_step(run), *_read(run)
    fruitless = fruitless + 1 if before is not None and step <= before else 0
    if fruitless >= most:
        _forget(run)
        known = last_words(run)
        why = f"{known}: {MEMORY_ADVICE}" if known else "read the log of the last one"
        raise NoProgress(
            f"{fruitless} tries in a row ended without a newer checkpoint than {_named(step)} "
            f"(retry.max_without_progress): {why}; the next start counts anew"
        )
    _write(run, step, fruitless)


def end(run: Path, exit_code: int, *, signalled: bool) -> None:
    """Note how the try ended: one that was stopped from outside is not the job's fault, a final one is the last."""
    if not is_retryable(exit_code):
        _forget(run)
    elif signalled or exit_code == StoppedAndSaved.exit_code:
        step, fruitless = _read(run)
        if step is not None:
            _write(run, step, fruitless - 1)


def newest_step(run: Path) -> int:
    """Return the step of the newest complete checkpoint, -1 without one; a manifest is written last."""
    steps = [-1]
    for manifest in run.glob("checkpoints/step-*/manifest.json"):
        number = manifest.parent.name.removeprefix("step-")
        if number.isdecimal() and manifest.stat().st_size:
            steps.append(int(number))
    return max(steps)


def _named(step: int) -> str:
    return f"step {step}" if step >= 0 else "none at all"


def _read(run: Path) -> tuple[int | None, int]:
    try:
        value = strict_json.load(run / "launch" / "tries.json")
        return int(value["step"]), int(value["fruitless"])
    except (OSError, ValueError, TypeError, KeyError):
        return None, 0


def _write(run: Path, step: int, fruitless: int) -> None:
    """Storage that cannot be written is the trainer's to report: a try that is not counted harms nobody."""
    text = json.dumps({"step": step, "fruitless": fruitless})
    with contextlib.suppress(OSError):
        write_atomically(run / "launch" / "tries.json", text)


def _forget(run: Path) -> None:
    try:
        (run / "launch" / "tries.json").unlink(missing_ok=True)
    except OSError:
        return
