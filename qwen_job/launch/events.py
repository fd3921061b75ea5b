"""Why a job has no pods at all: the warnings that its controllers left."""

from __future__ import annotations

import json
import time
from typing import Any

from qwen_job.errors import QwenJobError
from qwen_job.launch.backend import Entry
from qwen_job.launch.kubectl import kubectl, meaning


def why_no_pods(entry: Entry, deadline: float) -> str:
    """Return the newest warning about the job, or about the Jobs below it, in one line; empty without one."""
    namespace, _, name = entry.id.partition("/")
    for thing in (name, f"{name}-prepare", f"{name}-node-0"):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            return ""
        try:
            selector = f"--field-selector=type=Warning,involvedObject.name={thing}"
            text = kubectl("get", "events", "--namespace", namespace, selector, "-o", "json", seconds=seconds)
            events: list[dict[str, Any]] = json.loads(text)["items"]
        except (QwenJobError, ValueError, KeyError, TypeError):
            return ""
        if events:
            said = " ".join(str(max(events, key=_when).get("message") or "").split())
            return meaning(said) or said
    return ""


def _when(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
