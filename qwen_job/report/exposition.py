"""A run's newest figures in Prometheus's text format, for the textfile collector and for scraping.

The format: prometheus.io/docs/instrumenting/exposition_formats (text, version 0.0.4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_job.run.reading import number, whole
from qwen_job.text import visible

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("starting", "preparing", "training", "saving", "stopped", "failed", "done")


@dataclass
class Figures:
    """What is known of a run: its heartbeat, its newest events, and what was counted over all of them."""

    run: str
    heartbeat: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] = field(default_factory=dict)
    attempts: int = 0
    effective: float | None = None


def exposition(figures: Figures, now: float) -> str:
    """Return the text; figures that are not known are left out. ``now``: unix seconds."""
    lines = []
    for name, kind, text, value in _rows(figures, now):
        if value is not None:
            full = f"qwen_job_{name}"
            lines += [
                f"# HELP {full} {text}",
                f"# TYPE {full} {kind}",
                f"{full}{_labels(run=figures.run)} {value:.17g}",
            ]
    state = figures.heartbeat.get("state")
    if isinstance(state, str):
        lines += ["# HELP qwen_job_state 1 for the state that the run last reported.", "# TYPE qwen_job_state gauge"]
        names = STATES if state in STATES else (*STATES, visible(state, 40))
        lines += [f"qwen_job_state{_labels(run=figures.run, state=one)} {int(one == state)}" for one in names]
    return "\n".join(lines) + "\n"


def _rows(figures: Figures, now: float) -> Iterator[tuple[str, str, str, float | None]]:
    """Yield (name, type, help, value)."""
    beat, step = figures.heartbeat, figures.step
    at = number(step.get("time"))
    yield "step", "gauge", "Optimizer steps done.", _whole(step.get("step"), beat.get("step"))
    yield "total_steps", "gauge", "Optimizer steps of the whole run.", _whole(beat.get("total_steps"))
    yield "loss", "gauge", "Training loss of the last step.", number(step.get("loss"))
    yield "eval_loss", "gauge", "Loss of the last evaluation on held-out data.", number(figures.eval.get("loss"))
    yield "learning_rate", "gauge", "Learning rate of the last step.", number(step.get("learning_rate"))
    yield "gradient_norm", "gauge", "Norm of the gradients of the last step.", number(step.get("grad_norm"))
    speed = number(step.get("tokens_per_second"))
    yield "tokens_per_second", "gauge", "Tokens per second over all ranks, without padding.", speed
    yield "step_seconds", "gauge", "Seconds that the last step took.", number(step.get("step_seconds"))
    yield "mfu_ratio", "gauge", "Model FLOP/s utilisation of the last step, 0 to 1.", number(step.get("mfu"))
    memory = number(step.get("memory_bytes"))
    yield "memory_bytes", "gauge", "Peak memory of the rank that needs most: of the GPU, or of the process.", memory
    yield "attempts_total", "counter", "Attempts of the run that reached training.", float(figures.attempts)
    yield "effective_time_ratio", "gauge", "Time spent on steps that count over wall time, 0 to 1.", figures.effective
    yield "last_step_timestamp_seconds", "gauge", "When the last step ended, in unix seconds.", at
    since = None if at is None else max(0.0, now - at)
    yield "seconds_since_last_step", "gauge", "Seconds from the end of the last step to this text.", since
    yield "written_timestamp_seconds", "gauge", "When this text was made, in unix seconds.", now


def _whole(*values: object) -> float | None:
    found = [count for value in values if (count := whole(value)) is not None]
    return float(found[0]) if found else None


def _labels(**values: str) -> str:
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return re.sub(r'[\\"\n]', lambda found: {"\n": "\\n"}.get(found[0], f"\\{found[0]}"), value)
