"""Fit the few free constants of the estimates to finished runs of a cluster, for its site profile.

Read from a run's folder: train.yaml, deepspeed.json and metrics.jsonl. Fitted: ``activation_factor`` (memory; on a CPU
``process_bytes``), ``compute_factor`` and ``layer_seconds`` (speed). One run fits one constant of speed, the one that
bounds it; two runs with different micro-batches fit both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwen_job.errors import EnvironmentFault, JobError, QwenJobError
from qwen_job.facts.hardware import Gpu
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import DEFAULT_CONSTANTS, Constants, default_constants, estimate_memory
from qwen_job.plan.estimate.speed import SpeedConstants, default_speed, estimate_speed
from qwen_job.run.config import TrainConfig, load_config
from qwen_job.run.folder import RunFolder
from qwen_job.run.metrics import read_metrics
from qwen_job.run.reading import there

# Excluded: the first steps compile, allocate and fill caches.
WARMUP_STEPS = 5
LEAST_STEPS = 3
# A fitted factor outside this range means that the formulas do not describe the run.
BOUNDS = {
    "activation_factor": (0.3, 3.0),
    "compute_factor": (0.1, 1.6),
    "layer_seconds": (0.0002, 0.05),
    "process_bytes": (1e8, 2e10),
}
# A CPU's speed is assumed, so it may be further off than a GPU's.
CPU_BOUNDS = {"compute_factor": (0.02, 10.0), "layer_seconds": (0.0002, 0.5)}


@dataclass(frozen=True)
class Run:
    """One finished run: its settings and its measurements (medians over its steps after the first five)."""

    folder: str
    layout: Layout
    zero: Mapping[str, Any]
    on_cpu: bool
    fill: float
    network_gbs: float | None
    memory_bytes: float | None
    step_seconds: float


@dataclass(frozen=True)
class Fit:
    """A run's memory (allocated bytes; on a CPU, of a process) and step time: planned before, planned now, measured."""

    folder: str
    memory: tuple[float, float, float] | None
    seconds: tuple[float, float, float] | None


@dataclass(frozen=True)
class Calibration:
    """Constants that fit the runs, and how well."""

    constants: Constants
    speed: SpeedConstants
    fits: tuple[Fit, ...]
    on_cpu: bool = False

    def as_mapping(self) -> dict[str, float]:
        """Return the fitted constants by name, as ``constants_from`` reads them."""
        memory: dict[str, float] = {"activation_factor": round(self.constants.activation_factor, 4)}
        if self.on_cpu:
            memory = {"process_bytes": self.constants.process_bytes}
        return memory | {
            "compute_factor": round(self.speed.compute_factor, 4),
            "layer_seconds": round(self.speed.layer_seconds, 6),
        }

    def snippet(self) -> str:
        """Return the lines to add to a site profile."""
        lines = [f"# fitted to {len(self.fits)} run{'s' if len(self.fits) != 1 else ''}:"]
        for fit in self.fits:
            memory = _change("memory", fit.memory, 1e9, "GB")
            lines.append(f"#   {fit.folder}: {memory}{_change('step', fit.seconds, 1.0, 's')}".rstrip("; "))
        lines.append("plan:")
        lines += [
            f"  {name}: {value if isinstance(value, int) else f'{value:g}'}"
            for name, value in self.as_mapping().items()
        ]
        return "\n".join(lines) + "\n"


def calibrate(
    folders: Sequence[str | Path], gpu: Gpu, *, gpus_per_node: int | None = None, network_gbs: float | None = None
) -> Calibration:
    """Fit the constants to the runs in ``folders``, all on ``gpu``.

    ``gpus_per_node`` (default: each run had one node) and ``network_gbs`` describe runs on several nodes.

    Raises:
        EnvironmentFault: a folder lacks one of the three files, or has too few steps.
        JobError: the model's shape is unknown, or the best fit is outside the plausible range.
    """
    runs = [read_run(Path(folder), gpus_per_node, network_gbs) for folder in folders]
    if not runs:
        raise EnvironmentFault("no run to calibrate with; name one or more run folders")
    other = next((run for run in runs if run.on_cpu != gpu.is_cpu), None)
    if other is not None:
        ran = "a CPU" if other.on_cpu else "a GPU"
        raise EnvironmentFault(f"{other.folder}: ran on {ran}, not on {gpu.name}; -f names the job of these runs")
    constants = _fit_memory(runs, gpu)
    speed = _fit_speed(runs, gpu)
    fits = tuple(_fit(run, gpu, constants, speed) for run in runs)
    return Calibration(constants, speed, fits, gpu.is_cpu)


def layout_of(train: TrainConfig, deepspeed: Mapping[str, Any], gpus_per_node: int | None = None) -> Layout:
    """Return the layout of a run with these settings (train.yaml, deepspeed.json).

    Raises:
        UnknownName: the model's shape is unknown.
        ModelError: its config.json is not usable.
    """
    training, zero = train.training, deepspeed.get("zero_optimization", {})
    split = deepspeed.get("expert_parallel") or {}
    return Layout(
        load_model_shape(train.model.name),
        world_size=train.world_size,
        gpus_per_node=gpus_per_node or train.world_size,
        zero_stage=zero.get("stage", 0),
        offload_optimizer=(zero.get("offload_optimizer") or {}).get("device", "none") != "none",
        precision=train.precision,
        micro_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        sequence_length=train.data.max_length,
        gradient_checkpointing=train.gradient_checkpointing,
        tiled_mlp=train.tiled_mlp,
        activation_offloading=train.activation_offloading,
        attention=train.attention,
        fused_loss=train.fused_loss,
        fused_norms=train.device == "cuda",
        lean_zero=True,
        sequence_parallel_size=train.sequence_parallel_size,
        expert_parallel_size=split.get("autoep_size", 1) if split.get("enabled") else 1,
    )


def read_run(folder: Path, gpus_per_node: int | None = None, network_gbs: float | None = None) -> Run:
    """Read one run.

    Raises:
        EnvironmentFault: a file is missing or damaged; the message names it.
    """
    try:
        train, deepspeed = load_config(RunFolder(folder).train)
    except QwenJobError as error:
        raise EnvironmentFault(f"{error}; name a run's folder") from error
    zero = deepspeed["zero_optimization"]
    lines = _metrics(folder)
    steps = [line for line in lines if line.get("type") == "step"][WARMUP_STEPS:]
    if len(steps) < LEAST_STEPS:
        raise EnvironmentFault(
            f"{RunFolder(folder).metrics}: fewer than {WARMUP_STEPS + LEAST_STEPS} steps; let it run on"
        )
    tokens = statistics.median(float(step["tokens"]) for step in steps)
    measured = [float(step["memory_bytes"]) for step in steps if step.get("memory_bytes")]
    compiled = [bool(line.get("compiled")) for line in lines if line.get("type") == "compile"]
    layout = layout_of(train, deepspeed, gpus_per_node)._replace(compiled=compiled[-1:] == [True])
    return Run(
        folder=str(folder),
        layout=layout,
        zero=zero,
        on_cpu=train.device == "cpu",
        fill=min(1.0, tokens / (train.global_batch_size * train.data.max_length)),
        network_gbs=network_gbs,
        memory_bytes=max(measured) if measured else None,
        step_seconds=statistics.median(float(step["step_seconds"]) for step in steps),
    )


def planned_bytes(run: Run, constants: Constants) -> float:
    """Return the estimate of what metrics.jsonl measures: bytes that torch allocates, or a whole process on a CPU."""
    estimate = estimate_memory(run.layout, zero=run.zero, constants=constants)
    return float(estimate.moments[estimate.peak] + (constants.process_bytes if run.on_cpu else 0))


def planned_seconds(run: Run, gpu: Gpu, constants: SpeedConstants) -> float | None:
    """Return the estimated seconds per step; None for a GPU without a known peak."""
    layout = run.layout._replace(gpu=gpu)
    estimate = estimate_speed(layout, fill=run.fill, network_gbs=run.network_gbs, constants=constants)
    return None if estimate is None else estimate.mid


def _fit_memory(runs: Sequence[Run], gpu: Gpu) -> Constants:
    measured = [run for run in runs if run.memory_bytes]
    if not measured:
        return default_constants(gpu)
    if gpu.is_cpu:
        return _fit_process(measured)

    def loss(factor: float) -> float:
        constants = replace(DEFAULT_CONSTANTS, activation_factor=factor)
        return _squares((planned_bytes(run, constants), run.memory_bytes or 0) for run in measured)

    # A peak in the optimizer step reveals nothing about activations: keep the default.
    if math.isclose(loss(0.9), loss(1.1), rel_tol=1e-9):
        return DEFAULT_CONSTANTS
    return replace(DEFAULT_CONSTANTS, activation_factor=_least(loss, "activation_factor"))


def _fit_process(runs: Sequence[Run]) -> Constants:
    """Fit the memory of a process without its tensors: the largest, since too low a value does harm."""
    bare = replace(default_constants(None), process_bytes=0)
    most = max((run.memory_bytes or 0) - planned_bytes(run, bare) for run in runs)
    low, high = BOUNDS["process_bytes"]
    if not low < most < high:
        raise JobError(f"process_bytes would be {most:.3g}: the formulas do not describe these runs")
    return replace(bare, process_bytes=int(most))


def _fit_speed(runs: Sequence[Run], gpu: Gpu) -> SpeedConstants:
    best = default_speed(gpu)
    known = [run for run in runs if planned_seconds(run, gpu, best)]
    if not known:
        return best
    names = ["compute_factor", "layer_seconds"] if len(known) > 1 else [_bounding(known[0], gpu)]
    for _ in range(8 if len(names) > 1 else 1):  # alternate until both have converged
        for name in names:
            best = _refit(best, name, known, gpu)
    return best


def _refit(best: SpeedConstants, name: str, runs: Sequence[Run], gpu: Gpu) -> SpeedConstants:
    def changed(value: float) -> SpeedConstants:
        values: dict[str, Any] = {name: value}
        return replace(best, **values)

    def loss(value: float) -> float:
        return _squares((planned_seconds(run, gpu, changed(value)) or 1.0, run.step_seconds) for run in runs)

    return changed(_least(loss, name, CPU_BOUNDS if gpu.is_cpu else BOUNDS))


def _bounding(run: Run, gpu: Gpu) -> str:
    """Return the constant that a single run can determine: the one that affects its step time more."""
    default = default_speed(gpu)
    seconds = planned_seconds(run, gpu, replace(default, layer_seconds=default.layer_seconds / 2))
    again = planned_seconds(run, gpu, replace(default, compute_factor=default.compute_factor * 2))
    return "layer_seconds" if (seconds or 0.0) < (again or 0.0) else "compute_factor"


def _squares(pairs: Iterable[tuple[float, float]]) -> float:
    return sum(math.log(planned / measured) ** 2 for planned, measured in pairs)


def _least(loss: Callable[[float], float], name: str, bounds: Mapping[str, tuple[float, float]] = BOUNDS) -> float:
    """Return the minimum of ``loss`` within the constant's bounds (golden section on a logarithmic scale)."""
    lowest, highest = bounds[name]
    low, high = math.log(lowest), math.log(highest)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if loss(math.exp(first)) <= loss(math.exp(second)):
            high = second
        else:
            low = first
    found = math.exp((low + high) / 2)
    if found < lowest * 1.001 or found > highest * 0.999:
        raise JobError(
            f"{name} would be {found:.3g}, at the limit of its plausible range; did they run alone, on this device?"
        )
    return found


def _fit(run: Run, gpu: Gpu, constants: Constants, speed: SpeedConstants) -> Fit:
    before, after = planned_seconds(run, gpu, default_speed(gpu)), planned_seconds(run, gpu, speed)
    memory = None
    if run.memory_bytes:
        memory = (planned_bytes(run, default_constants(gpu)), planned_bytes(run, constants), run.memory_bytes)
    seconds = (before, after, run.step_seconds) if before is not None and after is not None else None
    return Fit(run.folder, memory, seconds)


def _change(name: str, figures: tuple[float, float, float] | None, unit: float, word: str) -> str:
    if figures is None:
        return ""
    before, after, measured = (figure / unit for figure in figures)
    return f"{name} {measured:.3g} {word}, planned {before:.3g}, now {after:.3g}; "


def _metrics(folder: Path) -> list[dict[str, Any]]:
    unread: list[str] = []
    found = read_metrics(folder, unread)
    path = RunFolder(folder).metrics
    if not found and (unread or not there(path)):
        reason = unread[0] if unread else f"{path}: cannot be read: no such file"
        raise EnvironmentFault(f"{reason}; name a run's folder")
    return found
