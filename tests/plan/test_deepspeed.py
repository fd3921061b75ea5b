"""deepspeed.json: complete, concrete, and never at odds with the rest of the job."""

# ruff: noqa: E501 - tables, one case a line
from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs import plan, problems


def test_it_is_complete_and_concrete(tmp_path: Path) -> None:
    config = plan(tmp_path).deepspeed_config
    assert (
        config["train_batch_size"]
        == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2
    )
    assert config["bf16"] == {"enabled": True} and config["fp16"] == {"enabled": False}
    assert config["gradient_clipping"] == 1.0
    assert "auto" not in json.dumps(config) and not {"scheduler", "optimizer"} & set(config)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_its_base(tmp_path: Path, stage: int) -> None:
    config = plan(tmp_path, f"deepspeed: {{zero_stage: {stage}}}\n", "model=Qwen/Qwen1.5-0.5B-Chat").deepspeed_config
    assert config["zero_optimization"]["stage"] == stage


def test_offload_and_fp16_bring_their_settings(tmp_path: Path) -> None:
    made = plan(tmp_path, "deepspeed: {zero_stage: 2, offload_optimizer: true}\n", "cluster.gpu=V100-32G")
    assert made.deepspeed_config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert made.deepspeed_config["fp16"]["loss_scale"] == 0


def test_the_user_s_settings_are_laid_over_ours(tmp_path: Path) -> None:
    text = "deepspeed: {config: {zero_optimization: {overlap_comm: false, new: 1}, wall_clock_breakdown: true}}\n"
    config = plan(tmp_path, text).deepspeed_config
    assert config["wall_clock_breakdown"] is True and config["zero_optimization"]["overlap_comm"] is False
    assert config["zero_optimization"]["new"] == 1 and "stage" in config["zero_optimization"]


def test_repeating_what_is_planned_is_no_contradiction(tmp_path: Path) -> None:
    text = "deepspeed: {zero_stage: 2, config: {zero_optimization: {stage: 2}, gradient_clipping: 1.0, fp16: {}}}\n"
    assert problems(tmp_path, text) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("zero_stage: 3, config: {zero_optimization: {stage: 2}}", "config.zero_optimization.stage: 2 contradicts deepspeed.zero_stage, which is 3"),
        ("config: {train_batch_size: 7}", "config.train_batch_size: 7 contradicts train.global_batch_size, which is 32"),
        ("config: {gradient_clipping: 5}", "config.gradient_clipping: 5 contradicts train.max_grad_norm, which is 1.0"),
        ("config: {fp16: {enabled: true}}", "config.fp16.enabled: true contradicts train.fp16, which is false"),
        ("config: {bf16: {enabled: auto}}", 'config.bf16.enabled: "auto" is decided by the plan; remove the line'),
        ("config: {scheduler: {type: WarmupLR}}", "config.scheduler: DeepSpeed's scheduler would silently override"),
        ("config: {optimizer: {type: Adam, params: {lr: 1}}}", "config.optimizer: DeepSpeed's optimizer would silently"),
        ("config: {zero_optimization: 3}", "config.zero_optimization: expected zero_optimization: {...} with fields"),
        (
            "config: {expert_parallel: {autoep_size: 2}}",
            "config.expert_parallel.autoep_size: 2 contradicts train.expert_parallel_size",
        ),
        ("config: {expert_parallel: {top_k: 2}}", "config.expert_parallel: top_k: is not offered: the model says how"),
        ("config: {expert_parallel: 2}", "config.expert_parallel: expected expert_parallel: {...} with fields, not 2"),
        ("config: {bf16: true}", "config.bf16: expected bf16: {...} with fields, not true"),
    ],
)  # fmt: skip
def test_contradictions_name_both_sides(tmp_path: Path, section: str, message: str) -> None:
    found = problems(tmp_path, f"deepspeed: {{{section}}}\n")
    assert len(found) == 1 and f"deepspeed.{message}" in found[0]


def test_all_contradictions_come_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "deepspeed: {config: {train_batch_size: 7, bf16: {enabled: auto}}}\n")) == 2


def test_rows_are_not_shared_behind_the_plan_s_back(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "deepspeed: {config: {sequence_parallel_size: 2}}\n")
    assert "deepspeed.config.sequence_parallel_size: rows are shared by train.sequence_parallel_size; " in found


def test_a_misspelt_key_is_refused_at_its_line(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "deepspeed: {config: {zero_optimisation: {overlap_comm: false}}}\n")
    assert "deepspeed.config.zero_optimisation: " in found
    assert "zero_optimization" in found


@pytest.mark.parametrize(("gpus", "overlaps"), [(1, False), (2, True)])
def test_a_lone_gpu_has_no_communication_to_overlap(tmp_path: Path, gpus: int, overlaps: bool) -> None:
    config = plan(tmp_path, "", f"cluster.gpus_per_node={gpus}", "model=Qwen/Qwen1.5-0.5B-Chat").deepspeed_config
    assert config["zero_optimization"]["overlap_comm"] is overlaps
    assert config["timers"] == {"throughput": {"enabled": False}}
