"""Speed: FLOPs in both conventions, communication by stage, and what must be slower than what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.speed import (
    SpeedEstimate,
    communication_bytes,
    estimate_run,
    estimate_speed,
    fallback_seconds,
    flops_per_token,
    hardware_flops_per_token,
    loose_flops_per_token,
)

SMALL = load_model_shape("Qwen/Qwen-1_8B-Chat")
LARGE = load_model_shape("Qwen/Qwen2.5-14B-Instruct")


def estimate(**options: Any) -> SpeedEstimate:
    base: dict[str, Any] = {
        "shape": SMALL,
        "gpu": load_gpu("A100-80G"),
        "world_size": 8,
        "gpus_per_node": 8,
        "zero_stage": 2,
    }
    extra = {key: options.pop(key) for key in ("network_gbs", "data_tokens_per_second") if key in options}
    found = estimate_speed(Layout(**{**base, **options}), **extra)
    assert found is not None
    return found


def test_flops_of_a_token_in_both_conventions() -> None:
    assert flops_per_token(SMALL, 2048) / 1e9 == pytest.approx(9.76, abs=0.005)
    assert loose_flops_per_token(SMALL, 2048) / 1e9 == pytest.approx(12.23, abs=0.005)


def test_sixty_percent_of_the_loose_convention_is_48_of_ours() -> None:
    assert 60 * flops_per_token(SMALL, 2048) / loose_flops_per_token(SMALL, 2048) == pytest.approx(48, abs=0.2)


def test_checkpointing_adds_less_than_a_third() -> None:
    ratio = hardware_flops_per_token(SMALL, 2048, True) / flops_per_token(SMALL, 2048)
    assert 1.2 < ratio < 4 / 3


def test_forty_percent_of_an_h100_is_forty_thousand_tokens() -> None:
    peak = load_gpu("H100").peak_tflops["bf16"] * 1e12
    assert 0.4 * peak / flops_per_token(SMALL, 2048) == pytest.approx(40_600, rel=0.005)


@pytest.mark.parametrize(("stage", "passes"), [(0, 2), (1, 2), (2, 5), (3, 12)])
def test_bytes_sent_in_a_step_of_four_micro_batches(stage: int, passes: int) -> None:
    one = 2 * SMALL.num_parameters * 7 / 8
    assert communication_bytes(SMALL, stage, 8, "bf16", 4) == pytest.approx(passes * one)


def test_one_gpu_sends_nothing() -> None:
    assert communication_bytes(SMALL, 3, 1, "bf16", 4) == 0


@pytest.mark.parametrize(("stage", "published"), [(2, 1588), (3, 1552)])
def test_the_published_14b_run_lies_in_the_range(stage: int, published: float) -> None:
    speed = estimate(
        shape=LARGE,
        gpu=load_gpu("A800"),
        zero_stage=stage,
        sequence_length=8192,
        gradient_accumulation_steps=2,
    )
    tokens = 8192 * 2
    assert tokens / speed.high < published < tokens / speed.low


def test_unknown_peak_gives_no_speed() -> None:
    for name, precision in (("CPU", "bf16"), ("V100-32G", "bf16")):
        assert estimate_speed(Layout(SMALL, 1, 1, 2, load_gpu(name), precision=precision)) is None
    assert estimate_speed(Layout(SMALL, 1, 1, 2)) is None


def test_a_processor_is_estimated_roughly_and_without_mfu() -> None:
    cpu = load_gpu("CPU")
    one, four = (estimate(gpu=cpu.of_cores(cores), precision="fp32", world_size=1, gpus_per_node=1) for cores in (1, 4))
    assert one.rough and one.mfu is None and one.high >= 4 * one.low
    assert one.parts["compute"] == pytest.approx(4 * four.parts["compute"]) and one.bound_by == "compute"
    assert one.mid == pytest.approx(sum(one.parts.values()))


def test_small_batches_are_bound_by_launches_and_large_ones_by_computing() -> None:
    assert estimate(world_size=1, gpus_per_node=1, sequence_length=128).bound_by == "launch"
    assert estimate(world_size=1, gpus_per_node=1, sequence_length=8192).bound_by == "compute"


def test_a_slow_network_bounds_zero_3_across_nodes() -> None:
    slow = estimate(world_size=64, zero_stage=3, network_gbs=1.0, shape=LARGE, sequence_length=512)
    assert slow.bound_by == "network"
    assert slow.mid > estimate(world_size=64, zero_stage=3, network_gbs=100.0, shape=LARGE, sequence_length=512).mid


@pytest.mark.parametrize(
    ("gpu", "nodes", "network_gbs", "link"),
    [
        ("A100-80G", 1, None, "NVLink"),
        ("L40S", 1, None, "PCIe"),
        ("A100-80G", 8, 25.0, "network"),
        ("L40S", 8, 12.5, "network"),
        ("L40S", 8, 400.0, "PCIe"),  # which then is the slowest link of the ring
    ],
)
def test_what_bounds_collectives_is_the_slowest_link_between_the_gpus(
    gpu: str, nodes: int, network_gbs: float | None, link: str
) -> None:
    speed = estimate(
        gpu=load_gpu(gpu), shape=LARGE, zero_stage=3, sequence_length=64, world_size=8 * nodes, network_gbs=network_gbs
    )
    assert (speed.bound_by, speed.link) == (link, link) and speed.parts["network"] == max(speed.parts.values())


def test_rows_shared_within_a_node_are_exchanged_over_its_links() -> None:
    options: dict[str, Any] = {"gpu": load_gpu("L40S"), "world_size": 16, "network_gbs": 5.0, "zero_stage": 1}
    long_rows = estimate(sequence_parallel_size=8, sequence_length=524288, **options)
    assert long_rows.link == "PCIe" and estimate(sequence_length=512, **options).link == "network"


def test_links_of_a_gpu_without_figures_are_not_given_a_kind() -> None:
    unknown = replace(load_gpu("L40S"), pcie_gbs=None)
    assert estimate(gpu=unknown, shape=LARGE, zero_stage=3, sequence_length=64).bound_by == "the link between GPUs"


def test_processes_of_one_machine_exchange_through_gloo() -> None:
    speed = estimate(gpu=load_gpu("CPU").of_cores(64), precision="fp32", sequence_length=1)
    assert speed.bound_by == "gloo"


def test_slow_storage_bounds_a_step() -> None:
    speed = estimate(data_tokens_per_second=1000.0)
    assert speed.bound_by == "data" and speed.tokens_per_second == pytest.approx(1000.0)


def test_offload_is_slower() -> None:
    assert estimate(offload_optimizer=True).mid > estimate().mid


@given(
    stage=st.integers(0, 3),
    offload=st.booleans(),
    micro=st.integers(1, 64),
    accumulation=st.integers(1, 32),
    length=st.integers(16, 32768),
    world_size=st.sampled_from([1, 2, 8, 16, 512]),
    checkpointing=st.booleans(),
    gpu=st.sampled_from(["A100-40G", "H100", "L40S", "RTX-4090", "H20"]),
)
def test_estimates_are_ordered_and_possible(
    stage: int,
    offload: bool,
    micro: int,
    accumulation: int,
    length: int,
    world_size: int,
    checkpointing: bool,
    gpu: str,
) -> None:
    speed = estimate(
        gpu=load_gpu(gpu),
        zero_stage=stage,
        offload_optimizer=offload,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        sequence_length=length,
        world_size=world_size,
        gpus_per_node=min(8, world_size),
        gradient_checkpointing=checkpointing,
    )
    assert 0 < speed.low <= speed.mid <= speed.high
    assert speed.mfu is not None and 0 < speed.mfu < 0.8
    assert speed.tokens_per_second == pytest.approx(micro * accumulation * length * world_size / speed.mid)


def test_a_run_counts_steps_hours_and_money() -> None:
    speed = SpeedEstimate((1.0, 2.0, 4.0), 1000.0, 0.5, "compute", {})
    run = estimate_run(
        speed,
        rows=1000,
        global_batch_size=32,
        num_train_epochs=3,
        world_size=8,
        checkpoint_bytes=10**10,
        save_steps=50,
        start_seconds=100,
        price_per_gpu_hour=2.0,
    )
    assert run.steps == 96
    assert run.epoch_seconds == (32.0, 64.0, 128.0)
    assert run.total_seconds == pytest.approx((196.0, 100 + 192 + 2 * 5, 100 + 384 + 2 * 10))
    assert run.cost == pytest.approx(tuple(2 * hours for hours in run.gpu_hours))
    assert run.gpu_hours[1] == pytest.approx(run.total_seconds[1] * 8 / 3600)


def test_spare_gpus_are_paid_for_and_save_no_time() -> None:
    speed = SpeedEstimate((1.0, 2.0, 4.0), 1000.0, 0.5, "compute", {})
    options: dict[str, Any] = {"rows": 64, "global_batch_size": 32, "num_train_epochs": 1, "price_per_gpu_hour": 3.0}
    plain, spare = (estimate_run(speed, world_size=16, spare_gpus=count, **options) for count in (0, 8))
    assert spare.total_seconds == plain.total_seconds
    assert spare.cost is not None and spare.cost[1] == pytest.approx(3 * spare.gpu_hours[1])
    assert spare.gpu_hours == pytest.approx(tuple(1.5 * hours for hours in plain.gpu_hours))


def test_max_steps_wins_over_epochs() -> None:
    speed = SpeedEstimate((1.0, 1.0, 1.0), 1.0, None, "compute", {})
    run = estimate_run(speed, rows=10, global_batch_size=10, num_train_epochs=3, world_size=1, max_steps=7)
    assert run.steps == 7 and run.cost is None


@pytest.mark.parametrize(
    ("model", "projections", "attention", "delta"),
    [
        ("qwen3-30b-a3b", 18.25e9, 48 * 6 * 4096, 0),
        ("qwen3.5-35b-a3b", 17.68e9, 10 * 6 * 4096, 30 * 18 * 32 * 128 * 128),
    ],
)
def test_flops_of_a_mixture_are_those_of_the_experts_that_a_token_passes(
    model: str, projections: float, attention: int, delta: int
) -> None:
    shape = load_model_shape(model)
    assert flops_per_token(shape, 0) - delta == pytest.approx(projections, rel=0.002)
    assert flops_per_token(shape, 1000) - flops_per_token(shape, 0) == 1000 * attention


def test_a_gpu_without_the_kernels_of_linear_attention_pays_for_it() -> None:
    shape = load_model_shape("qwen3.5-2b")
    layout = Layout(shape, 8, 8, zero_stage=2, precision="fp16", sequence_length=2048, gpu=load_gpu("V100-32G"))
    seconds = fallback_seconds(layout, load_gpu("V100-32G"))
    assert 0.1 < seconds < estimate(**layout._asdict()).mid
    assert fallback_seconds(layout._replace(gpu=load_gpu("A100-80G")), load_gpu("A100-80G")) == 0
