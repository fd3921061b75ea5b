"""Account for the wall time of a run, from metrics.jsonl alone. Nothing here imports torch.

Every second from the first event to the last belongs to exactly one account: the time between two events of an attempt
goes to the account of the later event, the time between two attempts to restarting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen_job.run import reading as run_files

Event = Mapping[str, Any]
ACCOUNTS = ("productive", "evaluating", "checkpointing", "restarting", "lost")


@dataclass
class Attempt:
    """One start of the run, with its events in order."""

    number: int
    # Why the launcher restarted all ranks in place after it; "" if it did not.
    after: str = ""
    events: list[Event] = field(default_factory=list)

    @property
    def resumed_from(self) -> int:
        """The step of the checkpoint that it resumed from, 0 without one."""
        return int(number(self.events[0], "resumed_from") or 0)

    @property
    def begin(self) -> float:
        """When it started, as far as known (unix seconds)."""
        first = number(self.events[0], "time") or 0.0
        for event in self.events:
            if event.get("type") == "end" and (seconds := number(event, "train_seconds")):
                return min(first, (number(event, "time") or first) - seconds)
        return first

    @property
    def end(self) -> float:
        """The time of its last event."""
        return max((number(event, "time") or 0.0) for event in self.events)

    @property
    def last_step(self) -> int:
        """The highest step that it reached."""
        return max((int(number(event, "step") or 0) for event in self.events), default=0)

    @property
    def outcome(self) -> str:
        """How it ended: done, the reason of a stop, or unknown."""
        kinds = [event.get("type") for event in self.events]
        if "end" in kinds:
            return "done"
        stops = [event for event in self.events if event.get("type") == "stop"]
        if not stops and self.after:
            return f"{self.after}; restarted in place"
        return str(stops[-1].get("reason") or "stopped") if stops else "no final event (killed, or still running)"


def number(event: Event, key: str) -> float | None:
    """Return a measured number of an event, None if a crash truncated it."""
    return run_files.number(event.get(key))


def attempts(events: Sequence[Event]) -> list[Attempt]:
    """Split the events of a run at each ``start``; ignore events without a time."""
    found: list[Attempt] = []
    for event in events:
        if number(event, "time") is None:
            continue
        if event.get("type") == "start" and event.get("in_place") and found:
            found[-1].after = str(event.get("after") or "a rank failed")
        if event.get("type") == "start" or not found:
            found.append(Attempt(len(found)))
        found[-1].events.append(event)
    return found


def earliest_later(all_attempts: Sequence[Attempt]) -> list[float]:
    """Return for each attempt the lowest step that a later one resumed from; steps after it were repeated."""
    lowest = math.inf
    found = []
    for attempt in reversed(all_attempts):
        found.append(lowest)
        lowest = min(lowest, attempt.resumed_from)
    return found[::-1]


def last_versions(all_attempts: Sequence[Attempt], kind: str) -> list[Event]:
    """Return the events of one type, without those of steps that were repeated later."""
    return [
        event
        for attempt, again in zip(all_attempts, earliest_later(all_attempts), strict=True)
        for event in attempt.events
        if event.get("type") == kind and int(number(event, "step") or 0) <= again
    ]


def account(all_attempts: Sequence[Attempt]) -> dict[str, float]:
    """Return the seconds of each of ACCOUNTS; their sum is the wall time from the first event to the last."""
    seconds = dict.fromkeys(ACCOUNTS, 0.0)
    heard = all_attempts[0].begin if all_attempts else 0.0
    for attempt, again in zip(all_attempts, earliest_later(all_attempts), strict=True):
        seconds["restarting"] += max(0.0, attempt.begin - heard)
        heard = max(heard, attempt.begin)
        for name, share in _shares(attempt, again, heard):
            seconds[name] += share
        heard = max(heard, attempt.end)
    return seconds


def _shares(attempt: Attempt, again: float, heard: float) -> Iterator[tuple[str, float]]:
    begun = False
    for event in attempt.events:
        now = max(heard, number(event, "time") or 0.0)
        passed, heard = now - heard, now
        kind = event.get("type")
        if kind == "step":
            lost = int(number(event, "step") or 0) > again
            # The time before the first step went into loading; only the step itself was training.
            worked = passed if begun else min(passed, number(event, "step_seconds") or 0.0)
            begun = True
            yield "lost" if lost else "productive", worked
            yield "restarting", passed - worked
        elif kind == "eval":
            yield "evaluating", passed
        elif kind == "start":
            yield "restarting", passed
        else:
            yield ("checkpointing" if begun else "restarting"), passed


def effective_share(seconds: Mapping[str, float]) -> float | None:
    """Return productive time over wall time, None without events."""
    total = sum(seconds.values())
    return seconds["productive"] / total if total > 0 else None
