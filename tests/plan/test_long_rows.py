"""Tiled networks and offloaded checkpoints: when the plan takes them, what they save, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.plan.search.choice import UNMEASURED, choose, layout_of
from qwen_job.plan.search.longest import longest_rows
from qwen_job.plan.train_config import train_config
from qwen_job.text import GIB

from .jobs import ask, job_of, plan_of

ALONE = ("model=Qwen/Qwen3-4B", "cluster.gpu=H100-80G", "cluster.gpus_per_node=1", "cluster.memory_gib=1000")
FOUR = (*ALONE, "cluster.gpus_per_node=4")
# Rows that fit as they are, but without the optimizer; one a step, so that it steps often.
TWO = (
    *ALONE,
    "cluster.gpus_per_node=2",
    "model=Qwen/Qwen2.5-7B-Instruct",
    "train.global_batch_size=2",
    "train.model_max_length=28672",
)


def rows(tokens: int) -> str:
    return f"train.model_max_length={tokens}"


def refused(folder: Path, *sets: str) -> str:
    with pytest.raises(JobError) as caught:
        plan_of(folder, *sets)
    return str(caught.value)


def reason(folder: Path, field: str, *sets: str) -> str:
    return next(one.reason for one in plan_of(folder, *sets).decisions if one.field == field)


def test_rows_that_fit_as_they_are_are_neither_tiled_nor_offloaded(tmp_path: Path) -> None:
    made = plan_of(tmp_path, *ALONE, rows(32768))
    assert (made.choice.tiled_mlp, made.choice.activation_offloading) == (False, False)
    assert reason(tmp_path, "train.tiled_mlp", *ALONE, rows(32768)) == "not needed for rows to fit"


def test_a_longer_row_is_tiled_and_a_still_longer_one_offloaded_on_one_gpu(tmp_path: Path) -> None:
    longest = [one.length for one in longest_rows(job_of(tmp_path, *ALONE)).here]
    assert len(longest) == 3 and longest == sorted(longest)
    for length, expected in ((longest[0] + 1024, (True, False)), (longest[1] + 1024, (True, True))):
        made = plan_of(tmp_path, *ALONE, rows(length))
        assert (made.choice.tiled_mlp, made.choice.activation_offloading) == expected
        config = train_config(made)
        assert (config.tiled_mlp, config.activation_offloading, config.torch_compile) == (*expected, False)
        assert "rows do not fit otherwise" in reason(tmp_path, "train.tiled_mlp", *ALONE, rows(length))


@pytest.mark.parametrize("sets", [(), ("train.torch_compile=true",)])
def test_the_optimizer_stays_on_the_gpu_where_that_is_estimated_much_faster(
    tmp_path: Path, sets: tuple[str, ...]
) -> None:
    whole = plan_of(tmp_path, *TWO, *sets, "train.tiled_mlp=false", "train.activation_offloading=false").choice
    made = plan_of(tmp_path, *TWO, *sets)
    assert whole.offload_optimizer and not made.choice.offload_optimizer
    assert made.choice.activation_offloading and not made.choice.tiled_mlp
    assert made.choice.speed and whole.speed
    faster = made.choice.speed.tokens_per_second / whole.speed.tokens_per_second
    assert faster > 1 / UNMEASURED
    words = f"estimated {faster - 1:.0%} faster than {whole}"
    assert reason(tmp_path, "train.activation_offloading", *TWO, *sets) == words
    asked = plan_of(tmp_path, *TWO, *sets, "deepspeed.offload_optimizer=true").choice
    assert not asked.activation_offloading


def test_tiles_make_room_for_the_optimizer_only_where_layers_need_not_be_compiled() -> None:
    question = ask("Qwen/Qwen3-14B", "H100-80G", sequence_length=16384, activation_offloading=False)
    question = replace(question, gpus_per_node=4, rows_per_gpu=1)
    free, compiled = choose(question).best, choose(replace(question, tiles_for_speed=False)).best
    assert free and free.tiled_mlp and not free.offload_optimizer
    assert compiled and not compiled.tiled_mlp and compiled.offload_optimizer


def test_rows_that_fit_are_not_tiled_where_speeds_are_unknown() -> None:
    question = replace(ask("Qwen/Qwen3-14B", "H100-80G", sequence_length=16384), gpus_per_node=4)
    unknown = replace(question, gpu=replace(question.gpu, peak_tflops={}), rows_per_gpu=1)
    best = choose(unknown).best
    assert best is not None and best.speed is None and not best.tiled_mlp


def test_gpus_share_rows_before_anything_goes_to_the_host(tmp_path: Path) -> None:
    alone = [one.length for one in longest_rows(job_of(tmp_path, *FOUR, "train.sequence_parallel_size=1")).here]
    made = plan_of(tmp_path, *FOUR, rows(alone[1] + 4096))
    assert made.choice.sequence_parallel_size > 1 and not made.choice.activation_offloading
    asked = plan_of(tmp_path, *FOUR, rows(alone[1] + 4096), "train.activation_offloading=true")
    assert asked.choice.sequence_parallel_size == 1 and asked.choice.activation_offloading


def test_each_step_up_is_listed_with_its_length_and_speed(tmp_path: Path) -> None:
    here = longest_rows(job_of(tmp_path, *FOUR)).here
    for size in (1, 2, 4):
        steps = [one for one in here if one.size == size]
        assert [one.length for one in steps] == sorted({one.length for one in steps})
        kinds = [(one.choice.tiled_mlp, one.choice.activation_offloading) for one in steps if one.choice]
        assert kinds == [(False, False), (True, False), (True, True)]
    fixed = longest_rows(job_of(tmp_path, *ALONE, "train.tiled_mlp=false")).here
    assert [one.choice.tiled_mlp for one in fixed if one.choice] == [False]


def test_tiling_frees_the_wide_values_and_offloading_all_but_two_checkpoints() -> None:
    question = replace(ask("Qwen/Qwen3-4B", "H100-80G", sequence_length=65536), micro_batch_size=1)
    question = replace(question, zero_stage=3, gradient_checkpointing=True, offload_optimizer=True)
    found = {}
    for tiled, away in ((False, False), (True, False), (True, True)):
        asked = replace(question, tiled_mlp=tiled, activation_offloading=away, margin=-9.0)
        best = choose(asked).best
        assert best is not None and layout_of(asked, best).tiles is tiled
        found[tiled, away] = best.needs
    plain, tiled, both = found.values()
    wide = 2 * 6 * 65536 * 9728
    assert 0.7 * wide < plain.gpu["one layer's backward"] - tiled.gpu["one layer's backward"] < wide
    inputs = 2 * 65536 * 2560
    assert tiled.gpu["activations"] - both.gpu["activations"] == 34 * inputs
    # torch takes a power of two of pinned memory: 335 MB are 512 MiB.
    assert both.host["offloaded activations"] == 36 * GIB // 2
    assert "offloaded activations" not in tiled.host


def test_the_host_must_have_room_for_the_checkpoints(tmp_path: Path) -> None:
    length = longest_rows(job_of(tmp_path, *ALONE)).here[1].length
    assert "does not fit even with" in refused(tmp_path, *ALONE, rows(length + 1024), "cluster.memory_gib=90")
    long = "train.activation_offloading=true"
    text = refused(tmp_path, *ALONE, rows(length - 1024), long, "cluster.memory_gib=90")
    assert "train.activation_offloading: false instead of true fits" in text


def test_what_cannot_be_is_refused_with_its_field(tmp_path: Path) -> None:
    moe = ("model=Qwen/Qwen3-30B-A3B", "cluster.gpu=H100-80G", "cluster.gpus_per_node=8", "train.tiled_mlp=true")
    assert "train.tiled_mlp: true: Qwen/Qwen3-30B-A3B is a mixture of experts" in refused(tmp_path, *moe)
    off = ("train.gradient_checkpointing=false", "train.activation_offloading=true")
    assert "train.activation_offloading: true: only checkpoints are offloaded" in refused(tmp_path, *ALONE, *off)
    tiled = ("train.torch_compile=true", "train.tiled_mlp=true", rows(2 * TILE_TOKENS))
    assert "train.torch_compile: true: layers are not compiled: a tiled MLP" in refused(tmp_path, *ALONE, *tiled)
    assert "train.tiled_mlp" in refused(tmp_path, *ALONE, "train.tiled_mlp=sometimes")


def test_what_has_no_effect_is_warned_of(tmp_path: Path) -> None:
    short = plan_of(tmp_path, *ALONE, rows(512), "train.per_device_train_batch_size=1", "train.tiled_mlp=true")
    assert "train.tiled_mlp: no effect: a GPU has 512 tokens at once, and a tile 4,096" in short.warnings
    cpu = ("model=Qwen/Qwen3-0.6B", "cluster.gpu=CPU", "train.gradient_checkpointing=true")
    host = plan_of(tmp_path, *cpu, "train.activation_offloading=true")
    assert any("train.activation_offloading: no effect" in one for one in host.warnings)
