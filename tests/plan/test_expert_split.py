"""Splitting the experts of a mixture over GPUs: what is refused, when the plan does it, and what it costs."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.facts.model_shapes import load_model_shape
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import estimate_memory
from qwen_job.plan.estimate.speed import communication_bytes, routed_bytes
from tests.jobs import plan, problems

MOE = "model=Qwen/Qwen3-30B-A3B"
NODE = (MOE, "cluster.gpu=H100-80G", "cluster.gpus_per_node=8", "train.model_max_length=2048")
SIZE = "train.expert_parallel_size="


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((*NODE, f"{SIZE}3"), "3 does not divide the 8 GPUs; write 2 or 4"),
        ((*NODE, f"{SIZE}16"), "16 does not divide the 8 GPUs; write 8"),
        ((*NODE, f"{SIZE}3", "cluster.gpus_per_node=6"), "3 does not divide the 128 experts of a layer; write 2"),
        ((*NODE, f"{SIZE}3", "cluster.gpus_per_node=3"), "3 does not divide the 128 experts of a layer; write 1"),
        ((*NODE, f"{SIZE}2", "deepspeed.zero_stage=0"), "2 needs ZeRO, but deepspeed.zero_stage is 0; write zero_stage 1, 2 or 3"),
        ((f"{SIZE}2",), "Qwen/Qwen-1_8B-Chat has no experts; remove the line, or take a mixture of experts"),
        ((*NODE, f"{SIZE}0"), "0"),
        ((*NODE, f"{SIZE}two"), "two"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be(tmp_path: Path, sets: tuple[str, ...], message: str) -> None:
    (problem,) = problems(tmp_path, "", *sets)
    assert "train.expert_parallel_size: " in problem and message in problem


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ((*NODE, "cluster.nodes=4"), 8),  # ZeRO-3 would gather all experts over the network
        (NODE, 1),
        ((*NODE, f"{SIZE}4"), 4),
        ((*NODE, "cluster.nodes=4", f"{SIZE}1"), 1),
        ((MOE, "cluster.gpu=V100-32G", "cluster.gpus_per_node=8", "cluster.nodes=4"), 1),
    ],
)
def test_the_plan_splits_experts_where_that_is_much_faster(
    tmp_path: Path, sets: tuple[str, ...], expected: int
) -> None:
    made = plan(tmp_path, "", *sets)
    assert made.choice.expert_parallel_size == expected
    block = {"enabled": True, "autoep_size": expected}
    assert made.deepspeed_config.get("expert_parallel") == (block if expected > 1 else None)


def test_the_reason_compares_weights_with_tokens(tmp_path: Path) -> None:
    made = plan(tmp_path, "", *NODE, "cluster.nodes=4")
    (found,) = [decision for decision in made.decisions if decision.field == "train.expert_parallel_size"]
    assert found.reason.startswith("each GPU has 16 of a layer's 128 experts: a step sends ")
    assert "of weights and gradients, " in found.reason and found.reason.endswith(" of tokens")


def test_what_is_faster_by_little_is_named_among_the_others(tmp_path: Path) -> None:
    lost = [runner.why for runner in plan(tmp_path, "", *NODE).runners_up if runner.choice.expert_parallel_size > 1]
    assert any("faster, which is too little for what was not measured on GPUs yet" in why for why in lost)


def test_no_state_is_kept_in_memory_on_several_nodes(tmp_path: Path) -> None:
    made = plan(tmp_path, "", *NODE, "cluster.nodes=4")
    assert made.memory_save_steps == 0
    (problem,) = problems(tmp_path, "", *NODE, "cluster.nodes=4", "train.memory_save_steps=10")
    assert "only the first would have the experts that GPUs split" in problem


def test_a_rank_holds_its_part_of_the_experts_and_all_else() -> None:
    shape = load_model_shape("Qwen/Qwen3-30B-A3B")
    layout = Layout(shape, world_size=8, gpus_per_node=8, zero_stage=2, expert_parallel_size=8)
    # 28,991,029,248 of 30,532,122,624 weights are experts' (counted from the model's shapes).
    assert shape.all_expert_parameters == 28_991_029_248
    assert layout.local_parameters == 30_532_122_624 - 28_991_029_248 * 7 // 8
    assert estimate_memory(layout).gpu["weights"] == 2 * layout.local_parameters
    assert estimate_memory(layout).gpu["optimizer"] == 8 * layout.shard


def test_tokens_travel_instead_of_experts() -> None:
    shape = load_model_shape("Qwen/Qwen3-30B-A3B")
    layout = Layout(shape, world_size=8, gpus_per_node=8, zero_stage=2, sequence_length=100, expert_parallel_size=8)
    rest = shape.num_parameters - shape.all_expert_parameters
    assert communication_bytes(shape, 2, 8, "bf16", 1, 8) == pytest.approx(2 * 2 * rest * 7 / 8)
    # There and back, forward, again for checkpointing, and backward: 8 experts of 48 layers, 2048 numbers of 2 bytes.
    assert routed_bytes(layout) == pytest.approx(6 * 48 * 100 * 8 * 2048 * 2 * 7 / 8)
    assert routed_bytes(layout._replace(expert_parallel_size=1)) == 0
