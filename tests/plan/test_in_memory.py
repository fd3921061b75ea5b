"""States in memory: planned where they fit, with their size; refused or left out where they do not, by how much."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.plan.train_config import train_config
from qwen_job.text import GIB
from tests.plan.jobs import plan_of

_FIELD = "train.memory_save_steps"


def reason(plan: object) -> str:
    (found,) = [decision.reason for decision in plan.decisions if decision.field == _FIELD]  # type: ignore[attr-defined]
    return str(found)


def test_the_state_is_counted_twice_on_one_node_and_four_times_with_neighbours(tmp_path: Path) -> None:
    alone = plan_of(tmp_path, "deepspeed.zero_stage=2")
    assert alone.memory is not None and alone.shape is not None
    count = alone.shape.num_parameters
    # bf16 weights, and fp32 master weights and two moments, sharded over both GPUs of the node.
    assert alone.memory.host["states in memory"] == 2 * (2 + 12) * count
    assert alone.memory_save_steps == "auto"
    two = plan_of(tmp_path, "deepspeed.zero_stage=2", "cluster.nodes=2")
    assert two.memory is not None
    assert two.memory.host["states in memory"] == pytest.approx(4 * (2 + 12 / 2) * count, rel=1e-6)
    config = train_config(two)
    assert config.training.memory_save_steps == "auto"
    assert config.plan.memory_save_bytes == two.memory.host["states in memory"]
    assert two.memory.host_needed == two.memory.host_bytes - sum(
        two.memory.host[item] for item in ("states in memory", "checkpoint copy") if item in two.memory.host
    )


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("cluster.memory_gib=64", "too much: /dev/shm, half of the node's memory, has 32.0 GiB"),
        ("slurm.memory=64G", "more than slurm.memory leaves"),
        ("slurm.memory=64000M", "more than slurm.memory leaves"),
        ("kubernetes.shm_size=40Gi", "NCCL and the data loaders 2.0 GiB; kubernetes.shm_size is 40.0 GiB: write 50Gi"),
    ],
)
def test_what_does_not_fit_is_off_by_default_and_refused_by_its_field(tmp_path: Path, limit: str, words: str) -> None:
    plan = plan_of(tmp_path, limit)
    assert plan.memory_save_steps == 0 and words in reason(plan)
    assert plan.memory is not None and "states in memory" not in plan.memory.host
    assert train_config(plan).plan.memory_save_bytes is None
    with pytest.raises(JobError) as refused:
        plan_of(tmp_path, limit, "train.memory_save_steps=10")
    assert f"{_FIELD}: states in memory take" in str(refused.value) and words in str(refused.value)


def test_enough_memory_keeps_them(tmp_path: Path) -> None:
    enough = ("cluster.memory_gib=512", "slurm.memory=400G", "kubernetes.shm_size=200Gi", "kubernetes.memory=400Gi")
    assert plan_of(tmp_path, *enough).memory_save_steps == "auto"
    assert plan_of(tmp_path, *enough, "train.memory_save_steps=3").memory_save_steps == 3


def test_the_shared_memory_that_a_refusal_names_is_enough_and_one_less_is_not(tmp_path: Path) -> None:
    found = re.search(r"write (\d+)Gi to keep them", reason(plan_of(tmp_path, "kubernetes.shm_size=16Gi")))
    assert found is not None
    assert plan_of(tmp_path, f"kubernetes.shm_size={found[1]}Gi").memory_save_steps == "auto"
    assert plan_of(tmp_path, f"kubernetes.shm_size={int(found[1]) - 1}Gi").memory_save_steps == 0


def test_zero_keeps_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "train.memory_save_steps=0")
    assert plan.memory_save_steps == 0
    assert plan.memory is not None and "states in memory" not in plan.memory.host


@pytest.mark.parametrize("value", ["-1", "often", "1.5", "true"])
def test_anything_else_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(JobError, match=_FIELD):
        plan_of(tmp_path, f"train.memory_save_steps={value}")


def test_a_pod_asks_for_the_memory_of_its_shared_memory(tmp_path: Path) -> None:
    from qwen_job.render.kubernetes.needs import needs

    sizes = [
        int(needs(plan_of(tmp_path, "kubernetes.shm_size=200Gi", f"train.memory_save_steps={steps}"))["memory"][:-2])
        for steps in ("0", "auto")
    ]
    plan = plan_of(tmp_path)
    assert plan.memory is not None
    assert sizes[1] - sizes[0] == pytest.approx(plan.memory.host["states in memory"] / GIB, abs=1)
