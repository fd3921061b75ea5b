"""How many steps lie between two states in memory: pure functions of what a save costs and how often a run fails.

- ``history_of``: the faults and costs of a run so far, from metrics.jsonl
- ``steps_between``: Young's interval where faults are known, else one that costs a fixed share of the time
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen_job.errors import RETRYABLE_FROM, StoppedAndSaved
from qwen_job.report.timeline import Attempt, attempts, number
from qwen_job.text import duration

# Before the first fault, the share of the time that training may pause for states in memory.
PAUSE_SHARE = 0.01
# The newest pauses and steps count: others ran on another machine, or with another length of rows.
NEWEST = 5


class History(NamedTuple):
    """What earlier attempts of a run went through.

    ``faults``: how many of them ended in one; ``seconds``: how long they ran, together; ``pause`` and ``step``: seconds
    that a state in memory and a step took lately, 0 if unknown.
    """

    faults: int = 0
    seconds: float = 0.0
    pause: float = 0.0
    step: float = 0.0

    def between_faults(self, elapsed: float) -> float | None:
        """Return the mean seconds between faults, ``elapsed`` into another attempt; None before the first fault."""
        return (self.seconds + elapsed) / self.faults if self.faults else None

    def reason(self, elapsed: float) -> str:
        """Return why the interval is what it is after a fault."""
        mean = duration(self.between_faults(elapsed) or 0.0)
        return f"Young's interval for a fault every {mean}, as {self.faults} so far suggest"


def history_of(events: Sequence[Mapping[str, Any]]) -> History:
    """Return the history of a run from the lines of its metrics.jsonl, before another attempt begins."""
    earlier = attempts(events)
    seconds = sum(attempt.end - attempt.begin for attempt in earlier)
    pause, step = _lately(events, "memory", "pause_seconds"), _lately(events, "step", "step_seconds")
    return History(sum(map(_ended_in_a_fault, earlier)), seconds, pause, step)


def steps_between(pause: float, step: float, between_faults: float | None) -> int:
    """Return the steps between two states that cost ``pause`` seconds each, where a step takes ``step`` seconds.

    With faults every T seconds and an interval of t, a run loses pause / t of its time to saves and t / (2 T) to steps
    that are repeated. The sum is least at t = sqrt(2 pause T): J. W. Young, "A first order approximation to the optimum
    checkpoint interval", Communications of the ACM 17 (9), 1974.
    """
    seconds = pause / PAUSE_SHARE if between_faults is None else math.sqrt(2 * pause * between_faults)
    if between_faults is None:
        return max(1, math.ceil(seconds / step))
    return max(1, round(seconds / step))


def _ended_in_a_fault(attempt: Attempt) -> bool:
    """Tell whether an attempt was not ended by its own end, by a request, or by an error that somebody corrected."""
    last = next((event for event in reversed(attempt.events) if event.get("type") in ("stop", "end")), {})
    code = number(last, "exit_code") if last.get("type") == "stop" else None
    if code is None:
        return last.get("type") != "end"
    return code >= RETRYABLE_FROM and code != StoppedAndSaved.exit_code


def _lately(events: Sequence[Mapping[str, Any]], kind: str, key: str) -> float:
    found = [value for event in events if event.get("type") == kind and (value := number(event, key))]
    return statistics.median(found[-NEWEST:]) if found else 0.0
