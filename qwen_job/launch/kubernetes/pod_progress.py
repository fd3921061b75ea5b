"""How far a job is, as its own pod tells it: where this machine does not see the run's folder."""

from __future__ import annotations

import re
import time
from typing import Any

from qwen_job import strict_json
from qwen_job.errors import QwenJobError
from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.kubectl import kubectl
from qwen_job.run.folder import HEARTBEAT
from qwen_job.run.progress import Progress, progress_from
from qwen_job.text import read_duration

# The trainer's own line: step 120/500 · loss 1.2345 · 34,289 tokens/s · MFU 45.2% · 3 min 20 s left
_LINE = re.compile(
    r"step (?P<step>\d+)(?:/(?P<total>\d+))?(?: · loss (?P<loss>[-\d.]+))?(?: · (?P<speed>[\d,]+) tokens/s)?"
    r"(?: · MFU [\d.]+%)?(?: · (?P<left>[\d a-z]+) left)?"
)


def pod_progress(entry: Entry, deadline: float) -> Progress:
    """Return the heartbeat that the pod reads for us or, where that is not allowed, the last line of its log.

    ``deadline`` in seconds of the monotonic clock; an empty :class:`Progress` when nothing was to be had.
    """
    namespace = entry.id.partition("/")[0]
    pod = ("--namespace", namespace, entry.log)
    beat = _object(_ask(deadline, "exec", *pod, "--", "cat", f"{entry.run}/{HEARTBEAT}")) if entry.run else {}
    if beat:
        return progress_from(beat)
    return progress_of_log(_ask(deadline, "logs", *pod, "--tail=50"))


def _ask(deadline: float, *words: str) -> str:
    seconds = deadline - time.monotonic()
    try:
        return kubectl(*words, seconds=seconds) if seconds > 0 else ""
    except QwenJobError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value = strict_json.loads(text, finite=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def progress_of_log(text: str) -> Progress:
    """Read the last progress line of a pod's output."""
    found = [match for line in text.splitlines() if (match := _LINE.match(line))]
    if not found:
        return Progress()
    last = found[-1].groupdict()
    return Progress(
        state="training",
        step=int(last["step"]),
        total_steps=int(last["total"]) if last["total"] else None,
        loss=_float(last["loss"]),
        tokens_per_second=_float((last["speed"] or "").replace(",", "")),
        eta_seconds=read_duration(last["left"]) if last["left"] else None,
    )


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
