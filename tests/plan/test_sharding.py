"""What a job that fits nowhere, or contradicts itself, is told; and what a profile's constants change."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.job.planning import Planning
from qwen_job.plan import make_plan
from qwen_job.plan.estimate.memory import Constants
from qwen_job.plan.estimate.speed import SpeedConstants
from qwen_job.plan.schedule import DataSize
from qwen_job.plan.train_config import train_config
from qwen_job.run.sections import plain

from .jobs import job_of, plan_of

LARGE = "model=Qwen/Qwen2.5-72B-Instruct"


def refused(folder: Path, *sets: str) -> str:
    with pytest.raises(JobError) as caught:
        plan_of(folder, *sets)
    return str(caught.value)


def test_a_job_that_fits_nowhere_says_how_much_and_the_nearest_that_works(tmp_path: Path) -> None:
    text = refused(tmp_path, LARGE)
    assert text.startswith(f"{tmp_path}/job.yaml:5:11: cluster.gpu: does not fit even with ZeRO-3")
    found = re.search(
        r"needs ([\d.]+) GiB per GPU, ([\d.]+) GiB more than 79.1 GiB with 8% to spare; most is weights", text
    )
    assert found and float(found[1]) - float(found[2]) == pytest.approx(0.92 * 79.1, abs=0.2)
    assert "\n  - cluster.nodes: 2 nodes instead of 1 are enough" in text
    assert plan_of(tmp_path, LARGE, "cluster.nodes=2").choice.memory


def test_two_lines_that_only_together_are_in_the_way_are_named(tmp_path: Path) -> None:
    fixed = ("deepspeed.zero_stage=2", "deepspeed.offload_optimizer=false")
    text = refused(tmp_path, LARGE, *fixed)
    assert "what would work:\n  - without deepspeed.zero_stage and deepspeed.offload_optimizer, 2 nodes" in text


def test_a_host_that_is_too_small_is_named_as_the_limit(tmp_path: Path) -> None:
    text = refused(tmp_path, "model=Qwen/Qwen-7B-Chat", "cluster.gpu=RTX-4090", "cluster.memory_gib=100")
    assert "--set: cluster.memory_gib: does not fit" in text and "GiB of host memory per node, " in text
    assert "\n  - cluster.memory_gib: 145 GiB a node instead of 100 are enough" in text


def test_only_gpus_that_can_do_the_job_are_proposed(tmp_path: Path) -> None:
    fixed = ("deepspeed.zero_stage=1", "deepspeed.offload_optimizer=false")
    text = refused(tmp_path, "cluster.gpu=RTX-4090", *fixed)
    assert "cluster.gpu: A100-40G" in text and "V100" not in text


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["deepspeed.offload_optimizer=true", "deepspeed.zero_stage=0"], "needs ZeRO"),
        (["deepspeed.offload_optimizer=true", "cluster.gpu=CPU"], "always in host memory"),
        (["train.bf16=true", "train.fp16=true"], "keep one"),
        (["train.bf16=true", "cluster.gpu=V100-32G"], "has no bf16"),
        (["train.global_batch_size=33"], "33 does not divide by 2"),
    ],
)
def test_contradictory_demands(tmp_path: Path, sets: list[str], message: str) -> None:
    assert message in refused(tmp_path, *sets)


def test_a_model_whose_config_lacks_a_field(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 64}))
    text = refused(tmp_path, f"model={tmp_path}")
    assert f"model.name: {tmp_path}/config.json: num_attention_heads: missing" in text


def test_a_gpu_by_its_numbers(tmp_path: Path) -> None:
    gpu = "cluster.gpu={name: X1, memory_gib: 64, compute_capability: 9.0, peak_tflops: {bf16: 500}, nvlink_gbs: 400}"
    made = plan_of(tmp_path, gpu)
    assert made.gpu.nvlink_gbs == 400 and made.memory is not None and made.speed is not None
    assert made.memory.capacity == 64 * 2**30
    assert plan_of(tmp_path, gpu.replace("500", "250")).speed.mid > made.speed.mid  # type: ignore[union-attr]


def test_the_profile_names_constants_that_exist() -> None:
    constants = {field.name for kind in (Constants, SpeedConstants) for field in fields(kind)}
    assert set(Planning.model_fields) - {"margin"} <= constants


def test_a_profiles_constants_change_the_estimates(tmp_path: Path) -> None:
    plain = plan_of(tmp_path, "train.per_device_train_batch_size=8")
    slower = plan_of(tmp_path, "train.per_device_train_batch_size=8", "plan.compute_factor=0.5")
    larger = plan_of(tmp_path, "train.per_device_train_batch_size=8", "plan.activation_factor=2")
    assert plain.speed and slower.speed and plain.memory and larger.memory
    assert slower.speed.parts["compute"] == pytest.approx(2 * plain.speed.parts["compute"])
    activations = plain.memory.gpu["activations"]
    assert larger.memory.gpu["activations"] == pytest.approx(2 * activations)


def test_the_margin_is_kept_free(tmp_path: Path) -> None:
    made = plan_of(tmp_path, "plan.margin=0.7")
    assert made.memory and made.memory.fits(0.7)
    assert not (plan_of(tmp_path).memory or made.memory).fits(0.7)


def test_the_run_follows_from_the_data(tmp_path: Path) -> None:
    job = job_of(tmp_path, "cluster.price_per_gpu_hour=2", "train.num_train_epochs=3")
    made = make_plan(job, data=DataSize(samples=64_000, tokens=16_000_000, attended_length=300))
    run = made.run
    assert run and run.estimate and run.rows_per_epoch == -(-16_000_000 // (512 * 0.97))
    assert run.steps_per_epoch == -(-run.rows_per_epoch // 32) and run.steps == 3 * run.steps_per_epoch
    low, mid, high = run.estimate.total_seconds
    assert low < mid < high and mid > run.steps * run.speed.mid  # type: ignore[union-attr]
    assert run.estimate.gpu_hours[1] == pytest.approx(mid * 2 / 3600)
    assert run.estimate.cost and run.estimate.cost[1] == pytest.approx(2 * run.estimate.gpu_hours[1])


def test_the_size_of_the_data_decides_nothing(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    counted = make_plan(job, data=DataSize(1000, 5000.0, 5.0))
    assert train_config(counted) == train_config(make_plan(job))
    assert counted.deepspeed_config == make_plan(job).deepspeed_config


def test_unpacked_rows_are_partly_padding(tmp_path: Path) -> None:
    sets = ("data.samples=3200", "data.tokens_per_sample=128")
    packed, loose = plan_of(tmp_path, *sets).run, plan_of(tmp_path, *sets, "data.packing=false").run
    assert packed and loose and packed.speed and loose.speed
    assert loose.rows_per_epoch == 3200 and (packed.rows_per_epoch or 0) < 1000
    assert packed.speed.tokens_per_second > 3 * loose.speed.tokens_per_second


def test_a_limit_shorter_than_the_run_tells_the_requeues(tmp_path: Path) -> None:
    made = plan_of(tmp_path, "data.samples=400000", "slurm.time=1h")
    assert any(": 9 requeues" in warning for warning in made.warnings), made.warnings


def test_the_run_is_told_what_it_will_measure(tmp_path: Path) -> None:
    made = plan_of(tmp_path)
    memory, speed = made.memory, made.speed
    assert memory is not None and speed is not None
    overhead = sum(memory.gpu[item] for item in ("fragmentation", "CUDA context", "NCCL"))
    planned = plain(train_config(made).plan)
    allocated = memory.gpu_bytes - overhead
    assert 0.8 * allocated < planned["memory_bytes_per_gpu"] < allocated  # layers are compiled where a node can
    never = plan_of(tmp_path, "train.torch_compile=false")
    assert plain(train_config(never).plan)["memory_bytes_per_gpu"] == allocated
    assert planned["tokens_per_second"] == pytest.approx(0.97 * speed.tokens_per_second, rel=1e-3)
