"""Summarize a run from the files of its folder. Nothing here imports torch; damaged files are no error."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_job.report.plot import CurvePoint
from qwen_job.report.timeline import Attempt, Event, account, attempts, effective_share, last_versions, number
from qwen_job.run.folder import RunFolder
from qwen_job.run.metrics import read_metrics
from qwen_job.run.reading import read_object, read_settings, whole


@dataclass(frozen=True)
class Summary:
    """The content of the report and the model card."""

    folder: Path
    settings: Mapping[str, Any]
    done: Mapping[str, Any]
    heartbeat: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    attempts: list[Attempt]
    steps: list[Event]
    evals: list[Event]
    guards: list[Event]
    seconds: Mapping[str, float]
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # files that exist but cannot be read

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.settings.get("name") or self.folder.name)

    @property
    def state(self) -> str:
        """The state: done, stopped, failed, training, ...; unknown if no file records it."""
        ended = bool(self.attempts) and self.attempts[-1].outcome == "done"
        return "done" if self.done or ended else str(self.heartbeat.get("state") or "unknown")

    @property
    def effective(self) -> float | None:
        """Productive time over wall time."""
        return effective_share(self.seconds)

    def curve(self, key: str, kind: str = "step") -> list[CurvePoint]:
        """Return (step, value) of one key for the events that have both."""
        events = self.evals if kind == "eval" else self.steps
        pairs = [(number(event, "step"), number(event, key)) for event in events]
        return [(x, y) for x, y in pairs if x is not None and y is not None]

    def last(self, key: str, kind: str = "step") -> float | None:
        """Return the last value of one key."""
        points = self.curve(key, kind)
        return points[-1][1] if points else None

    def median(self, key: str) -> float | None:
        """Return the median over steps, without the first of each attempt (warm-up)."""
        firsts = {(number(event, "step")) for attempt in self.attempts for event in _first_step(attempt)}
        points = self.curve(key)
        steady = [y for x, y in points if x not in firsts] or [y for _, y in points]
        return statistics.median(steady) if steady else None

    def peak(self, key: str) -> float | None:
        """Return the largest value over all steps."""
        return max((y for _, y in self.curve(key)), default=None)

    def total(self, key: str) -> float:
        """Return the sum over all steps, without those repeated after a restart."""
        return sum(y for _, y in self.curve(key))

    def planned(self, key: str) -> float | None:
        """Return a number of the plan section in train.yaml."""
        plan = self.settings.get("plan")
        return number(plan, key) if isinstance(plan, dict) else None

    @property
    def against_plan(self) -> dict[str, tuple[float | None, float | None]]:
        """Return (planned, measured) of the planned figures, by their names in metrics.jsonl."""
        return {
            "memory_bytes": (self.planned("memory_bytes_per_gpu"), self.peak("memory_bytes")),
            "step_seconds": (self.planned("step_seconds"), self.median("step_seconds")),
            "tokens_per_second": (self.planned("tokens_per_second"), self.median("tokens_per_second")),
        }

    def planned_bytes(self, key: str) -> int | None:
        """Return a whole number of the plan section in train.yaml."""
        value = self.planned(key)
        return None if value is None else int(value)

    @property
    def memory_items(self) -> dict[str, int]:
        """Return the planned bytes by item, empty without a plan."""
        plan = self.settings.get("plan")
        items = plan.get("memory_items") if isinstance(plan, dict) else None
        if not isinstance(items, dict):
            return {}
        return {str(name): int(size) for name in items if (size := number(items, name)) is not None and size > 0}

    @property
    def parallel_sizes(self) -> dict[str, int]:
        """Return over how many GPUs rows and experts are split, by the field's name; only what is split."""
        block = self.deepspeed.get("expert_parallel")
        experts = block.get("autoep_size") if isinstance(block, dict) and block.get("enabled") is True else None
        rows = self.settings.get("sequence_parallel_size")
        sizes = {"sequence_parallel_size": whole(rows), "expert_parallel_size": whole(experts)}
        return {name: size for name, size in sizes.items() if size is not None and size > 1}

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of train.yaml, empty if it is missing."""
        value = self.settings.get(name)
        return value if isinstance(value, dict) else {}


def _first_step(attempt: Attempt) -> list[Event]:
    return [event for event in attempt.events if event.get("type") == "step"][:1]


def summarize(folder: Path) -> Summary:
    """Read a run folder; damaged files are omitted and listed in ``unread``."""
    unread: list[str] = []
    run = RunFolder(folder)
    events = read_metrics(folder, unread)
    found = attempts(events)
    return Summary(
        folder=folder,
        settings=read_settings(folder, unread),
        done=read_object(run.done, unread),
        heartbeat=read_object(run.heartbeat, unread),
        evaluation=read_object(run.evaluation, unread),
        attempts=found,
        steps=last_versions(found, "step"),
        evals=last_versions(found, "eval"),
        guards=[event for event in events if event.get("type") == "guard"],
        seconds=account(found),
        deepspeed=read_object(run.deepspeed, unread),
        unread=unread,
    )


def against_plan(run_dir: Path) -> dict[str, Any]:
    """Return the planned and measured figures for the last line of metrics.jsonl.

    Empty if the folder cannot be read, because the last line must be written.
    """
    try:
        pairs = summarize(run_dir).against_plan
    except Exception:
        return {}
    return {
        "planned": {key: planned for key, (planned, _) in pairs.items()},
        "measured": {key: measured for key, (_, measured) in pairs.items()},
    }
