"""Global batch = micro-batch x accumulation x world size."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.plan.batch import Batch
from tests.jobs import pinned_plan, plan, problems


@pytest.mark.parametrize(
    ("train", "gpus", "expected"),
    [
        ({}, 2, (1, 16, 32)),
        ({"per_device_train_batch_size": 4}, 2, (4, 4, 32)),
        ({"per_device_train_batch_size": 3}, 1, (3, 5, 15)),
        ({"per_device_train_batch_size": 32}, 1, (32, 1, 32)),
        ({"gradient_accumulation_steps": 8}, 2, (1, 8, 16)),
        ({"global_batch_size": 128}, 8, (1, 16, 128)),
        ({"global_batch_size": 128, "per_device_train_batch_size": 4}, 8, (4, 4, 128)),
        ({"global_batch_size": 128, "gradient_accumulation_steps": 4}, 8, (4, 4, 128)),
        ({"global_batch_size": 64, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, 8, (2, 4, 64)),
    ],
)
def test_the_arithmetic(tmp_path: Path, train: dict[str, int], gpus: int, expected: tuple[int, int, int]) -> None:
    unset = {"per_device_train_batch_size": None, "gradient_accumulation_steps": None}
    batch = pinned_plan(tmp_path, train={**unset, **train}, cluster={"gpus_per_node": gpus}).batch
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps, batch.global_batch_size) == expected


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{global_batch_size: 100}", "100 does not divide by 8 (1 x 8 GPUs); the nearest that does is 96 or 104"),
        ("{global_batch_size: 3}", "3 does not divide by 8 (1 x 8 GPUs); the nearest that does is 8"),
        (
            "{global_batch_size: 40, per_device_train_batch_size: 4}",
            "40 does not divide by 32 (1 x 8 GPUs, per_device_train_batch_size 4); the nearest that does is 32 or 64",
        ),
        (
            "{global_batch_size: 64, per_device_train_batch_size: 4, gradient_accumulation_steps: 4}",
            "64 is not per_device_train_batch_size 4 x gradient_accumulation_steps 4 x 8 GPUs = 128; "
            "remove one of the three",
        ),
    ],
)
def test_what_does_not_divide_names_the_nearest_fit(tmp_path: Path, train: str, message: str) -> None:
    found = problems(tmp_path, f"train: {train}\n", "cluster.gpus_per_node=8")
    assert found == [f"job.yaml:6:9: train.global_batch_size: {message}"]


def test_the_planned_batch_keeps_the_written_product(tmp_path: Path) -> None:
    batch = plan(tmp_path, "train: {global_batch_size: 96}\n", "cluster.gpus_per_node=3").batch
    assert batch.micro_batch_size * batch.gradient_accumulation_steps == 32 and batch.world_size == 3


def test_a_batch_is_a_product() -> None:
    assert Batch(2, 3, 4).global_batch_size == 24


def test_zero_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="global_batch_size: 0 is too small: write 1 or more"):
        plan(tmp_path, "train: {global_batch_size: 0}\n")
