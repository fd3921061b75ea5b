"""Two plans side by side: what differs in what was written and decided, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen_job.plan.plan import Plan
from qwen_job.text import GIB


@dataclass(frozen=True)
class Difference:
    """One field (with a dot in its name) or result of two plans; None where a plan has none."""

    field: str
    first: Any
    second: Any

    @property
    def ratio(self) -> float | None:
        """How many times as much the second result is; None for fields and words."""
        if "." in self.field or not isinstance(self.first, (int, float)) or not isinstance(self.second, (int, float)):
            return None
        return self.second / self.first if self.first else None


def compare(first: Plan, second: Plan) -> list[Difference]:
    """Return the differences only: fields in the order of job.yaml, then decisions, then results."""
    sides = [{**_written(plan), **_decided(plan), **results(plan)} for plan in (first, second)]
    fields = dict.fromkeys([*sides[0], *sides[1]])
    pairs = [Difference(name, sides[0].get(name), sides[1].get(name)) for name in fields]
    return [pair for pair in pairs if pair.first != pair.second]


def results(plan: Plan) -> dict[str, Any]:
    """Return what the plan comes to, by name with its unit; only what is known."""
    run = plan.run
    memory = run.memory if run else None
    found: dict[str, Any] = {"GPUs": plan.world_size}
    if memory is not None:
        found["GiB a GPU"] = round(memory.gpu_bytes / GIB, 1) or None
        found["GiB of host memory a node"] = round(memory.host_bytes / GIB, 1)
        found["GiB on disk"] = round(memory.disk_bytes / GIB, 1)
    if run is not None and run.speed is not None:
        found["seconds a step"] = round(run.speed.mid, 2)
        found["tokens/s"] = round(run.speed.tokens_per_second)
        found["MFU %"] = None if run.speed.mfu is None else round(100 * run.speed.mfu, 1)
        found["bound by"] = run.speed.bound_by
    if run is not None:
        found["steps"] = run.steps
    if run is not None and run.estimate is not None:
        found["hours"] = round(run.estimate.total_seconds[1] / 3600, 2)
        found["GPU-hours"] = round(run.estimate.gpu_hours[1], 1)
        found["cost"] = None if run.estimate.cost is None else round(run.estimate.cost[1], 2)
    return found


def _decided(plan: Plan) -> dict[str, Any]:
    return {decision.field: decision.value for decision in plan.decisions}


def _written(plan: Plan) -> dict[str, Any]:
    """Return every field of the job by its dotted name, those that the plan decides left to their decision."""
    return flatten(plan.job.model_dump(mode="json"))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name; lists and empty mappings are leaves."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            found.update(flatten(item, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = item
    return found
