"""Why a value is what it is, and where it was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import UsageError
from qwen_job.plan.explain import ITEMS, explain

from .jobs import plan_of


def test_a_decision_gives_its_reason_and_its_alternatives(tmp_path: Path) -> None:
    found = explain(plan_of(tmp_path), "zero_stage")
    assert (found.field, found.value) == ("deepspeed.zero_stage", 2)
    assert found.reasons[0].startswith("fastest of 60 that fits")
    assert any(reason.startswith("3: ") for reason in found.reasons)


def test_a_value_that_was_written_says_where_and_what_the_plan_would_take(tmp_path: Path) -> None:
    found = explain(plan_of(tmp_path, "deepspeed.zero_stage=3", "cluster.nodes=4"), "deepspeed.zero_stage")
    assert found.reasons[0] == "written in --set"
    assert any(reason.startswith("if you remove it, the plan takes ZeRO-") for reason in found.reasons)


def test_a_field_of_the_file_names_its_line(tmp_path: Path) -> None:
    assert explain(plan_of(tmp_path), "gpus_per_node").reasons[0] == f"written in {tmp_path}/job.yaml, line 5"


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("learning_rate", 1e-05, "the default"),
        ("env.NCCL_DEBUG", "WARN", "a preset for this device and network"),
        ("overlap_comm", True, "from qwen_job/facts/deepspeed/zero2.json, or by the plan"),
        ("memory.weights", "3.42 GiB", ITEMS["weights"]),
    ],
)
def test_defaults_presets_and_items(tmp_path: Path, field: str, value: object, reason: str) -> None:
    found = explain(plan_of(tmp_path), field)
    assert found.value == value and found.reasons[0] == reason


def test_every_item_of_memory_has_its_words(tmp_path: Path) -> None:
    for sets in (("deepspeed.zero_stage=3",), ("deepspeed.offload_optimizer=true", "deepspeed.zero_stage=2")):
        memory = plan_of(tmp_path, *sets).memory
        assert memory is not None and {*memory.gpu, *memory.host} <= set(ITEMS)


def test_what_the_device_decides_is_told_for_every_value(tmp_path: Path) -> None:
    attention = explain(plan_of(tmp_path), "train.attention").reasons
    assert any(reason.startswith("eager: ") and "GiB per GPU" in reason for reason in attention)
    old = explain(plan_of(tmp_path, "cluster.gpu=V100-32G"), "precision").reasons
    assert any(reason.startswith("bf16: ") and "has no bf16" in reason for reason in old)
    assert any(reason.startswith("fp32: ") and "tokens/s" in reason for reason in old)


def test_activations_are_told_by_layer(tmp_path: Path) -> None:
    told = explain(
        plan_of(tmp_path, "train.gradient_checkpointing=true", "train.model_max_length=8192"), "memory.activations"
    ).reasons[1]
    assert told.startswith("24 layers of ") and "; without checkpointing " in told


@pytest.mark.parametrize(
    ("field", "hint"),
    [("zero_stag", "deepspeed.zero_stage"), ("train.lerning_rate", "train.learning_rate"), ("micro", "micro_batch")],
)
def test_a_mistyped_field_gets_the_nearest(tmp_path: Path, field: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"no field '{field}'; did you mean .*{hint}"):
        explain(plan_of(tmp_path), field)


def test_a_name_of_several_fields_is_asked_for_in_full(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'cache_dir' matches several fields: model.cache_dir, data.cache_dir"):
        explain(plan_of(tmp_path), "cache_dir")
