"""Calibration: runs made with known constants give those constants back; bad folders are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import EnvironmentFault, JobError
from qwen_job.facts.hardware import Gpu, load_gpu
from qwen_job.plan.estimate.calibrate import calibrate, planned_bytes, planned_seconds, read_run
from qwen_job.plan.estimate.constants import constants_from
from qwen_job.plan.estimate.memory import DEFAULT_CONSTANTS, zero_settings
from qwen_job.plan.estimate.speed import DEFAULT_SPEED

A100 = load_gpu("A100-80G")
TRUE_MEMORY = replace(DEFAULT_CONSTANTS, activation_factor=1.2)
TRUE_SPEED = replace(DEFAULT_SPEED, compute_factor=0.8, layer_seconds=0.007)


def write_run(folder: Path, *, micro: int, steps: int = 20, seconds: float = 1.0, memory: float | None = 1.0) -> Path:
    folder.mkdir()
    train = {
        "name": "run",
        "output_dir": str(folder),
        "world_size": 2,
        "device": "cuda",
        "precision": "bf16",
        "attention": "varlen",
        "fused_loss": "torch",
        "gradient_checkpointing": False,
        "model": {"name": "Qwen/Qwen-1_8B-Chat", "source": "modelscope"},
        "data": {"train": ["chats.json"], "max_length": 2048},
        "training": {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4},
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    (folder / "deepspeed.json").write_text(json.dumps({"zero_optimization": dict(zero_settings(2))}))
    lines: list[dict[str, Any]] = [{"type": "start", "step": 0}]
    for step in range(steps):
        slow = 10.0 if step < 3 else 1.0  # the first steps compile
        values = {"tokens": micro * 4 * 2 * 2048, "step_seconds": slow * seconds, "memory_bytes": memory}
        lines.append({"type": "step", "step": step, **values})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"type": "st')
    return folder


def measured_run(folder: Path, micro: int) -> Path:
    """Write a run whose measurements are the estimates with the true constants."""
    run = read_run(write_run(folder.with_name(f"{folder.name}-shape"), micro=micro))
    seconds = planned_seconds(run, A100, TRUE_SPEED)
    assert seconds is not None
    return write_run(folder, micro=micro, seconds=seconds, memory=planned_bytes(run, TRUE_MEMORY))


def test_two_runs_give_all_three_constants_back(tmp_path: Path) -> None:
    folders = [measured_run(tmp_path / f"run{micro}", micro) for micro in (1, 8)]
    found = calibrate(folders, A100)
    assert found.constants.activation_factor == pytest.approx(1.2, rel=0.01)
    assert found.speed.compute_factor == pytest.approx(0.8, rel=0.03)
    assert found.speed.layer_seconds == pytest.approx(0.007, rel=0.03)
    for fit in found.fits:
        assert fit.memory is not None and fit.memory[1] == pytest.approx(fit.memory[2], rel=0.01)
        assert fit.seconds is not None and fit.seconds[1] == pytest.approx(fit.seconds[2], rel=0.01)


def test_the_snippet_reads_back_as_the_constants(tmp_path: Path) -> None:
    found = calibrate([measured_run(tmp_path / "run", 8)], A100)
    memory, speed = constants_from(yaml.safe_load(found.snippet())["plan"])
    assert memory.activation_factor == pytest.approx(found.constants.activation_factor, rel=1e-3)
    assert speed.compute_factor == pytest.approx(found.speed.compute_factor, rel=1e-3)
    assert "run: memory" in found.snippet()


def test_one_run_fits_its_step_by_the_constant_that_bounds_it(tmp_path: Path) -> None:
    found = calibrate([measured_run(tmp_path / "run", 8)], A100)
    seconds = found.fits[0].seconds
    assert seconds is not None and seconds[1] == pytest.approx(seconds[2], rel=0.01)
    assert found.speed.layer_seconds == DEFAULT_SPEED.layer_seconds


def test_a_run_that_measured_no_memory_leaves_it_alone(tmp_path: Path) -> None:
    found = calibrate([write_run(tmp_path / "run", micro=8, seconds=3.0, memory=None)], A100)
    assert found.constants == DEFAULT_CONSTANTS and found.fits[0].memory is None


def test_an_unknown_peak_leaves_speed_alone(tmp_path: Path) -> None:
    unknown: Gpu = replace(A100, peak_tflops={})
    found = calibrate([write_run(tmp_path / "run", micro=8, memory=None)], unknown)
    assert found.speed == DEFAULT_SPEED and found.fits[0].seconds is None


def test_figures_that_no_such_gpu_gives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="limit of its plausible range"):
        calibrate([write_run(tmp_path / "run", micro=8, seconds=1e4, memory=None)], A100)


def test_too_few_steps(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="fewer than 8 steps"):
        calibrate([write_run(tmp_path / "run", micro=1, steps=7)], A100)


@pytest.mark.parametrize("name", ["train.yaml", "deepspeed.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", micro=1)
    (folder / name).unlink()
    with pytest.raises(EnvironmentFault, match=name):
        calibrate([folder], A100)


def test_no_run_at_all() -> None:
    with pytest.raises(EnvironmentFault, match="no run to calibrate with"):
        calibrate([], A100)


def test_an_unknown_constant_is_named() -> None:
    with pytest.raises(JobError, match=r"plan\.speed_of_light: no such constant"):
        constants_from({"speed_of_light": 1.0})
