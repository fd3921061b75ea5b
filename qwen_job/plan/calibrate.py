"""Fit the few free constants of the estimates to finished runs of a cluster, for its site profile.

Read from a run's folder: train.yaml, deepspeed.json and metrics.jsonl. Fitted: ``activation_factor`` (memory),
``compute_factor`` and ``layer_seconds`` (speed). One run fits one constant of speed, the one that bounds it; two runs
with different micro-batches fit both. Nothing is fitted from runs that measured nothing on a GPU.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qwen_job.errors import EnvironmentFault, JobError
from qwen_job.plan.facts import Gpu, ModelShape, load_model_shape
from qwen_job.plan.memory import DEFAULT_CONSTANTS, Constants, estimate_memory
from qwen_job.plan.speed import DEFAULT_SPEED, SpeedConstants, estimate_speed

# The first steps compile, allocate and fill caches.
WARMUP_STEPS = 5
LEAST_STEPS = 3
# A fitted factor outside this range means that the run is not what the formulas describe.
BOUNDS = {"activation_factor": (0.3, 3.0), "compute_factor": (0.1, 1.6), "layer_seconds": (0.0002, 0.05)}


@dataclass(frozen=True)
class Run:
    """What one finished run was asked to do, and what it measured (medians over its steps after the first five)."""

    folder: str
    shape: ModelShape
    options: dict[str, Any]
    gradient_accumulation_steps: int
    fill: float
    network_gbs: float | None
    memory_bytes: float | None
    step_seconds: float


@dataclass(frozen=True)
class Fit:
    """One run's figures before and after: planned and measured bytes (allocated) and seconds of a step."""

    folder: str
    memory: tuple[float, float, float] | None
    seconds: tuple[float, float, float] | None


@dataclass(frozen=True)
class Calibration:
    """Constants that fit the runs, and how well."""

    constants: Constants
    speed: SpeedConstants
    fits: tuple[Fit, ...]

    def as_mapping(self) -> dict[str, float]:
        """Return the fitted constants by name, as ``constants_from`` reads them."""
        return {
            "activation_factor": round(self.constants.activation_factor, 4),
            "compute_factor": round(self.speed.compute_factor, 4),
            "layer_seconds": round(self.speed.layer_seconds, 6),
        }

    def snippet(self) -> str:
        """Return the lines to put into a site profile."""
        lines = [f"# fitted to {len(self.fits)} run{'s' if len(self.fits) != 1 else ''}:"]
        for fit in self.fits:
            memory = _change("memory", fit.memory, 1e9, "GB")
            lines.append(f"#   {fit.folder}: {memory}{_change('step', fit.seconds, 1.0, 's')}".rstrip("; "))
        lines.append("plan:")
        lines += [f"  {name}: {value:g}" for name, value in self.as_mapping().items()]
        return "\n".join(lines) + "\n"


def constants_from(values: dict[str, float]) -> tuple[Constants, SpeedConstants]:
    """Return the defaults with ``values`` laid over them. Errors: JobError for a name that is no constant."""
    memory = {name: value for name, value in values.items() if hasattr(DEFAULT_CONSTANTS, name)}
    speed = {name: value for name, value in values.items() if hasattr(DEFAULT_SPEED, name)}
    unknown = sorted(set(values) - set(memory) - set(speed))
    if unknown:
        raise JobError(f"plan.{unknown[0]}: no such constant; qwen-job plan --calibrate writes them")
    changed: dict[str, Any] = memory
    faster: dict[str, Any] = speed
    return replace(DEFAULT_CONSTANTS, **changed), replace(DEFAULT_SPEED, **faster)


def calibrate(
    folders: Sequence[str | Path], gpu: Gpu, *, gpus_per_node: int | None = None, network_gbs: float | None = None
) -> Calibration:
    """Fit the constants to the runs in ``folders``, all on ``gpu``.

    ``gpus_per_node`` (default: one node each) and ``network_gbs`` tell what runs on several nodes were joined by.

    Errors: EnvironmentFault for a folder without the three files or with too few steps, JobError for a model whose
    shape is not known or when the best fit lies outside what the formulas can mean.
    """
    runs = [read_run(Path(folder), gpus_per_node, network_gbs) for folder in folders]
    if not runs:
        raise EnvironmentFault("no run to calibrate with: name one or more run folders")
    constants = _fit_memory(runs, gpu)
    speed = _fit_speed(runs, gpu)
    fits = tuple(_fit(run, gpu, constants, speed) for run in runs)
    return Calibration(constants, speed, fits)


def read_run(folder: Path, gpus_per_node: int | None = None, network_gbs: float | None = None) -> Run:
    """Read one run. Errors: EnvironmentFault naming the file and what is wrong with it."""
    train = _mapping(folder / "train.yaml", yaml.safe_load)
    zero = _mapping(folder / "deepspeed.json", json.loads)["zero_optimization"]
    steps = [line for line in _lines(folder / "metrics.jsonl") if line.get("type") == "step"][WARMUP_STEPS:]
    if len(steps) < LEAST_STEPS:
        raise EnvironmentFault(
            f"{folder / 'metrics.jsonl'}: fewer than {WARMUP_STEPS + LEAST_STEPS} steps; let it run on"
        )
    training, length = train["training"], int(train["data"]["max_length"])
    micro, accumulation = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    rows = micro * accumulation * train["world_size"]
    tokens = statistics.median(float(step["tokens"]) for step in steps)
    measured = [float(step["memory_bytes"]) for step in steps if step.get("memory_bytes")]
    options = {
        "world_size": train["world_size"],
        "gpus_per_node": gpus_per_node or train["world_size"],
        "zero_stage": zero["stage"],
        "offload_optimizer": (zero.get("offload_optimizer") or {}).get("device", "none") != "none",
        "precision": train["precision"],
        "micro_batch_size": micro,
        "sequence_length": length,
        "gradient_checkpointing": train["gradient_checkpointing"],
        "memory": {"attention": train["attention"], "fused_loss": train["fused_loss"], "zero": zero},
    }
    return Run(
        folder=str(folder),
        shape=load_model_shape(train["model"]["name"]),
        options=options,
        gradient_accumulation_steps=accumulation,
        fill=min(1.0, tokens / (rows * length)),
        network_gbs=network_gbs,
        memory_bytes=max(measured) if measured and train["device"] == "cuda" else None,
        step_seconds=statistics.median(float(step["step_seconds"]) for step in steps),
    )


def planned_bytes(run: Run, constants: Constants) -> float:
    """Bytes that torch allocates at the run's peak, by the estimate: what metrics.jsonl measures."""
    common = {key: value for key, value in run.options.items() if key != "memory"}
    estimate = estimate_memory(
        run.shape,
        **common,
        **run.options["memory"],
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        constants=constants,
    )
    return float(estimate.moments[estimate.peak])


def planned_seconds(run: Run, gpu: Gpu, constants: SpeedConstants) -> float | None:
    """Seconds of the run's step by the estimate; None for a GPU without a known peak."""
    common = {key: value for key, value in run.options.items() if key != "memory"}
    estimate = estimate_speed(
        run.shape,
        gpu=gpu,
        **common,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        fill=run.fill,
        network_gbs=run.network_gbs,
        constants=constants,
    )
    return None if estimate is None else estimate.mid


def _fit_memory(runs: Sequence[Run], gpu: Gpu) -> Constants:
    measured = [run for run in runs if run.memory_bytes]
    if not measured or gpu.is_cpu:
        return DEFAULT_CONSTANTS

    def loss(factor: float) -> float:
        constants = replace(DEFAULT_CONSTANTS, activation_factor=factor)
        return _squares((planned_bytes(run, constants), run.memory_bytes or 0) for run in measured)

    # A peak in the optimizer step says nothing about activations: the default stays.
    if math.isclose(loss(0.9), loss(1.1), rel_tol=1e-9):
        return DEFAULT_CONSTANTS
    return replace(DEFAULT_CONSTANTS, activation_factor=_least(loss, "activation_factor"))


def _fit_speed(runs: Sequence[Run], gpu: Gpu) -> SpeedConstants:
    known = [run for run in runs if planned_seconds(run, gpu, DEFAULT_SPEED)]
    if not known:
        return DEFAULT_SPEED
    best = DEFAULT_SPEED
    names = ["compute_factor", "layer_seconds"] if len(known) > 1 else [_bounding(known[0], gpu)]
    for _ in range(8 if len(names) > 1 else 1):  # one after the other until both are at rest
        for name in names:
            best = _refit(best, name, known, gpu)
    return best


def _refit(best: SpeedConstants, name: str, runs: Sequence[Run], gpu: Gpu) -> SpeedConstants:
    def changed(value: float) -> SpeedConstants:
        values: dict[str, Any] = {name: value}
        return replace(best, **values)

    def loss(value: float) -> float:
        return _squares((planned_seconds(run, gpu, changed(value)) or 1.0, run.step_seconds) for run in runs)

    return changed(_least(loss, name))


def _bounding(run: Run, gpu: Gpu) -> str:
    """Name the constant that a single run can tell: which of the two moves its step more."""
    seconds = planned_seconds(run, gpu, replace(DEFAULT_SPEED, layer_seconds=DEFAULT_SPEED.layer_seconds / 2))
    again = planned_seconds(run, gpu, replace(DEFAULT_SPEED, compute_factor=DEFAULT_SPEED.compute_factor * 2))
    return "layer_seconds" if (seconds or 0.0) < (again or 0.0) else "compute_factor"


def _squares(pairs: Iterable[tuple[float, float]]) -> float:
    return sum(math.log(planned / measured) ** 2 for planned, measured in pairs)


def _least(loss: Callable[[float], float], name: str) -> float:
    """Return where ``loss`` is least inside the constant's bounds (golden section on a logarithmic scale)."""
    low, high = (math.log(bound) for bound in BOUNDS[name])
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        if loss(math.exp(first)) <= loss(math.exp(second)):
            high = second
        else:
            low = first
    found = math.exp((low + high) / 2)
    bounds = BOUNDS[name]
    if found < bounds[0] * 1.001 or found > bounds[1] * 0.999:
        raise JobError(f"{name} would be {found:.3g}, at the end of what it can mean: is this the GPU of these runs?")
    return found


def _fit(run: Run, gpu: Gpu, constants: Constants, speed: SpeedConstants) -> Fit:
    before, after = planned_seconds(run, gpu, DEFAULT_SPEED), planned_seconds(run, gpu, speed)
    memory = None
    if run.memory_bytes:
        memory = (planned_bytes(run, DEFAULT_CONSTANTS), planned_bytes(run, constants), run.memory_bytes)
    seconds = (before, after, run.step_seconds) if before is not None and after is not None else None
    return Fit(run.folder, memory, seconds)


def _change(name: str, figures: tuple[float, float, float] | None, unit: float, word: str) -> str:
    if figures is None:
        return ""
    before, after, measured = (figure / unit for figure in figures)
    return f"{name} {measured:.3g} {word}, planned {before:.3g}, now {after:.3g}; "


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise EnvironmentFault(f"{path}: cannot be read ({str(error).splitlines()[0]}); name a run's folder") from error
    if not isinstance(values, dict):
        raise EnvironmentFault(f"{path}: not a mapping; name a run's folder")
    return values


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; a last line that a killed run left half-written is passed over."""
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                found.append(value)
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error}); name a run's folder") from error
    return found
