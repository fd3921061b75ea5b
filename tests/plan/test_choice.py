"""The choice: the fastest that fits, why others lost, the smallest cluster, the nearest job; and warnings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.facts.hardware import gpu_names
from qwen_job.plan.advice import RunNumbers, requeues, warnings_for
from qwen_job.plan.search.choice import Choice, choose, combinations, fit
from qwen_job.plan.search.question import Question
from qwen_job.text import GIB
from tests.plan.jobs import ask, chosen


def test_a_roomy_gpu_gets_the_simple_way() -> None:
    best = chosen(ask(gpus_per_node=2))
    assert (best.zero_stage, best.offload_optimizer, best.gradient_checkpointing) == (2, False, False)


def test_a_small_gpu_gets_offload() -> None:
    assert chosen(ask(gpu="RTX-4090")).offload_optimizer


def test_a_model_larger_than_a_gpu_gets_zero_3() -> None:
    best = chosen(ask("Qwen/Qwen2.5-72B-Instruct", nodes=8, gpus_per_node=8))
    assert best.zero_stage == 3 and not best.offload_optimizer


def test_a_cpu_gets_the_reference_stage() -> None:
    best = chosen(ask(gpu="CPU", gpus_per_node=2, precision="fp32", attention="sdpa", fused_loss="none"))
    assert (best.zero_stage, best.offload_optimizer, best.gradient_checkpointing) == (2, False, False)
    assert best.speed is not None and best.speed.rough  # a time, and no reason to choose


def test_what_the_user_fixed_is_kept() -> None:
    best = chosen(ask(zero_stage=1, offload_optimizer=True, gradient_checkpointing=True, micro_batch_size=2))
    assert (best.zero_stage, best.offload_optimizer, best.gradient_checkpointing) == (1, True, True)
    assert (best.micro_batch_size, best.gradient_accumulation_steps) == (2, 8)


def test_every_runner_up_says_why_it_lost() -> None:
    answer = choose(ask("Qwen/Qwen2.5-7B-Instruct", "A100-40G", gpus_per_node=4, sequence_length=2048))
    assert answer.best is not None and len(answer.runners_up) == 11
    slower = [runner for runner in answer.runners_up if runner.choice.fits]
    assert slower and all("slower" in runner.why or "as fast" in runner.why for runner in slower)
    misfits = [runner for runner in answer.runners_up if not runner.choice.fits]
    assert misfits and all("GiB more than 39.4 GiB" in runner.why for runner in misfits)


def test_a_small_host_rules_offload_out() -> None:
    answer = choose(ask(gpu="RTX-4090", host_memory_bytes=16 * GIB))
    assert answer.best is None
    assert any("of host memory per node" in runner.why for runner in answer.runners_up)


def test_the_smallest_cluster() -> None:
    found = fit(ask("Qwen/Qwen2.5-72B-Instruct", gpus_per_node=8, offload_optimizer=False, sequence_length=4096))
    assert found is not None
    nodes, answer = found
    assert nodes > 1
    assert answer.best is not None
    assert (
        choose(
            ask(
                "Qwen/Qwen2.5-72B-Instruct",
                gpus_per_node=8,
                offload_optimizer=False,
                nodes=nodes - 1,
                sequence_length=4096,
            )
        ).best
        is None
    )


def test_no_cluster_is_large_enough_for_one_row_that_is_too_long() -> None:
    assert (
        fit(
            ask("Qwen/Qwen2.5-72B-Instruct", "V100-16G", sequence_length=131072, attention="sdpa", precision="fp16"),
            largest=4,
        )
        is None
    )


def test_a_global_batch_that_does_not_divide_leaves_that_cluster_out() -> None:
    assert choose(ask(nodes=3, gpus_per_node=1, global_batch_size=32)).best is None
    found = fit(ask("Qwen/Qwen2.5-7B-Instruct", "RTX-4090", offload_optimizer=False, global_batch_size=32))
    assert found is not None and 32 % found[0] == 0


@given(
    gpu=st.sampled_from(gpu_names()),
    model=st.sampled_from(["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-32B-Instruct"]),
    nodes=st.integers(1, 16),
    rows=st.integers(1, 48),
    length=st.integers(64, 16384),
)
def test_nothing_that_fits_is_faster_than_the_choice(gpu: str, model: str, nodes: int, rows: int, length: int) -> None:
    question = ask(model, gpu, nodes=nodes, gpus_per_node=8, rows_per_gpu=rows, sequence_length=length)
    best = choose(question).best
    fitting = [choice for choice in combinations(question) if choice.fits]
    assert (best is None) == (not fitting)
    for choice in fitting:
        assert choice.micro_batch_size * choice.gradient_accumulation_steps == rows
        assert choice.memory.fits(question.margin)
        if best and not choice.activation_offloading:
            assert choice.sequence_parallel_size >= best.sequence_parallel_size
        if best and _order(choice) == _order(best) and best.speed and choice.speed:
            assert choice.speed.tokens_per_second <= best.speed.tokens_per_second * 1.01


def _order(choice: Choice) -> tuple[bool, int, bool]:
    """Return what a choice is held by, the simplest way first: see ``rungs``."""
    tiled = choice.tiled_mlp and not choice.activation_offloading  # what goes to the host is tiled first
    return choice.activation_offloading, choice.sequence_parallel_size, tiled


FINE = RunNumbers(samples=100_000, total_seconds=3600, time_limit_seconds=7200, shm_bytes=64 * GIB)


def fields(question: Question, run: RunNumbers) -> list[str]:
    return [warning.field for warning in warnings_for(question, chosen(question), run)]


def test_a_good_job_has_no_warning() -> None:
    assert fields(ask(gpus_per_node=2, host_memory_bytes=500 * GIB), FINE) == []


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("train.learning_rate", {"learning_rate": 1e-3}),
        ("train.learning_rate", {"learning_rate": 1e-9}),
        ("train.global_batch_size", {"samples": 100}),
        ("train.num_train_epochs", {"samples": 900, "num_train_epochs": 10.0}),
        ("/dev/shm", {"shm_bytes": 64 * 2**20}),
        ("slurm.time", {"total_seconds": 36000.0}),
        ("slurm.time", {"time_limit_seconds": 60.0}),
        ("retry.max_retries", {"total_seconds": 360000.0, "max_retries": 3}),
    ],
)
def test_each_warning_names_its_field_and_a_fix(field: str, change: dict[str, Any]) -> None:
    question = ask(gpus_per_node=2, host_memory_bytes=500 * GIB)
    found = warnings_for(question, chosen(question), replace(FINE, **change))
    assert [warning.field for warning in found] == [field]
    assert found[0].fix and str(found[0]).startswith(f"{field}: ")


def test_an_unknown_or_small_host_is_warned_of_with_offload() -> None:
    question = ask(gpu="RTX-4090")
    assert "cluster.memory_gib" in fields(question, FINE)
    assert "cluster.memory_gib" in [
        w.field for w in warnings_for(replace(question, host_memory_bytes=8 * GIB), chosen(question), FINE)
    ]


def test_zero_3_over_a_slow_network_is_warned_of() -> None:
    question = ask("Qwen/Qwen2.5-14B-Instruct", nodes=4, gpus_per_node=8, zero_stage=3, network_gbs=1.0)
    assert "deepspeed.zero_stage" in fields(question, FINE)


def test_a_sequence_longer_than_the_models_is_warned_of() -> None:
    assert "train.model_max_length" in fields(ask(sequence_length=10_000), FINE)


def test_a_micro_batch_that_is_too_small_is_warned_of() -> None:
    question = ask(gpus_per_node=2, micro_batch_size=1, host_memory_bytes=500 * GIB)
    found = warnings_for(question, chosen(question), FINE)
    assert [warning.field for warning in found] == ["train.per_device_train_batch_size"]
    assert "16 with train.gradient_accumulation_steps 1 is the same step" in found[0].fix
    assert fields(replace(question, micro_batch_size=16), FINE) == []


def test_a_full_card_is_warned_of() -> None:
    question = ask(micro_batch_size=1, zero_stage=2, offload_optimizer=False)
    just_enough = int(chosen(question).memory.gpu_bytes / 0.95)
    full = replace(question, gpu=replace(question.gpu, memory_bytes=just_enough), margin=0.0)
    assert "plan.margin" in fields(full, FINE)


def test_what_the_plan_takes_within_its_own_margin_is_not_warned_of() -> None:
    question = ask(micro_batch_size=1, zero_stage=2, offload_optimizer=False)
    within = int(chosen(question).memory.gpu_bytes / 0.915)
    assert "plan.margin" not in fields(replace(question, gpu=replace(question.gpu, memory_bytes=within)), FINE)


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({}, "write 2 or 3, or data.eval_split with train.early_stopping_patience"),
        ({"held_out": True}, "write 2 or 3, or train.early_stopping_patience"),
        ({"held_out": True, "stops_early": True}, None),
    ],
)
def test_overfitting_is_warned_of_with_what_is_still_missing(change: dict[str, Any], fix: str | None) -> None:
    question = ask(gpus_per_node=2, host_memory_bytes=500 * GIB)
    few = replace(FINE, samples=283, num_train_epochs=5.0, rows=100_000, **change)
    found = [w.fix for w in warnings_for(question, chosen(question), few) if w.field == "train.num_train_epochs"]
    assert found == ([] if fix is None else [fix])


@pytest.mark.parametrize(("limit", "times"), [(1100.0, 0), (600.0, 1), (300.0, 4), (100.0, None)])
def test_requeues(limit: float, times: int | None) -> None:
    assert requeues(1000.0, limit, 60.0, 40.0) == times
