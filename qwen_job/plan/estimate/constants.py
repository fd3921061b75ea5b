"""The estimates' constants for one cluster: the device's defaults, overridden by ``plan:`` in the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwen_job.errors import JobError
from qwen_job.facts.hardware import Gpu
from qwen_job.plan.estimate.memory import DEFAULT_CONSTANTS, Constants, default_constants
from qwen_job.plan.estimate.speed import DEFAULT_SPEED, SpeedConstants, default_speed


def constants_from(values: Mapping[str, float], gpu: Gpu | None = None) -> tuple[Constants, SpeedConstants]:
    """Return the device's default constants, overridden by ``values``.

    Raises:
        JobError: a name is not one of the constants.
    """
    memory: dict[str, Any] = {name: value for name, value in values.items() if hasattr(DEFAULT_CONSTANTS, name)}
    speed: dict[str, Any] = {name: value for name, value in values.items() if hasattr(DEFAULT_SPEED, name)}
    unknown = sorted(set(values) - set(memory) - set(speed))
    if unknown:
        raise JobError(f"plan.{unknown[0]}: no such constant; 'qwen-job plan --calibrate' prints the valid ones")
    return replace(default_constants(gpu), **memory), replace(default_speed(gpu), **speed)
