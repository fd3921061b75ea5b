"""When nothing fits: what is too large by how much, and jobs near it that work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_job.facts.hardware import gpu_names, load_gpu
from qwen_job.plan.search.choice import choose
from qwen_job.plan.search.nearest import nearest, refusal, together
from qwen_job.text import GIB
from tests.plan.jobs import ask, chosen

GPUS = [load_gpu(name) for name in gpu_names()]


def test_the_nearest_job_names_fields_that_make_it_fit() -> None:
    question = ask("Qwen/Qwen-7B-Chat", gpus_per_node=2, zero_stage=2, offload_optimizer=False)
    changes = {change.field: change.value for change in nearest(question, GPUS)}
    assert changes["deepspeed.offload_optimizer"] is True
    assert chosen(replace(question, offload_optimizer=True)).fits
    assert chosen(replace(question, nodes=int(str(changes["cluster.nodes"])))).fits
    assert chosen(replace(question, gpu=load_gpu(str(changes["cluster.gpu"])))).fits


def test_the_nearest_length_fits_and_the_next_does_not() -> None:
    question = ask(sequence_length=400_000, gradient_checkpointing=False)
    length = next(change.value for change in nearest(question) if change.field == "train.model_max_length")
    assert isinstance(length, int)
    assert choose(replace(question, sequence_length=length)).best
    assert not choose(replace(question, sequence_length=length + 64)).best


def test_a_refusal_says_by_how_much_and_what_would_work() -> None:
    asked = ask("Qwen/Qwen-7B-Chat", gpus_per_node=2, zero_stage=2, offload_optimizer=False)
    field, text, remedies = refusal(asked, GPUS)
    assert field == "cluster.gpu"
    assert text.startswith("does not fit even with ZeRO-2")
    assert "GiB more than 79.1 GiB" in text and text.endswith("; what would work, each alone, the cheapest first:")
    assert remedies[0].startswith("deepspeed.zero_stage: 3 instead of 2 fits")
    fields = [remedy.partition(":")[0] for remedy in remedies]
    assert fields == [
        "deepspeed.zero_stage",
        "deepspeed.offload_optimizer",
        "cluster.gpus_per_node",
        "cluster.nodes",
        "cluster.gpu",
    ]


def test_more_gpus_of_the_node_are_as_few_as_are_enough() -> None:
    question = ask("Qwen/Qwen-7B-Chat", gpus_per_node=1, zero_stage=3, offload_optimizer=False)
    (count,) = [change.value for change in nearest(question) if change.field == "cluster.gpus_per_node"]
    assert isinstance(count, int)
    assert (
        choose(replace(question, gpus_per_node=count)).best
        and not choose(replace(question, gpus_per_node=count // 2)).best
    )


def test_a_refusal_of_a_batch_names_the_multiple() -> None:
    assert "write a multiple of 3" in refusal(ask(nodes=3, global_batch_size=32))[1]


def test_a_refusal_without_any_way_out_says_so() -> None:
    question = ask("Qwen/Qwen2.5-72B-Instruct", margin=0.9999)
    assert refusal(question)[1].endswith("no length, number of nodes or GPU known is enough")


def test_a_host_that_no_cluster_makes_up_for_is_said_to_be_in_the_way_too() -> None:
    question = ask("Qwen/Qwen2.5-72B-Instruct", host_memory_bytes=1)
    (way,) = refusal(question).remedies
    assert "instead of 1 are enough, with more host memory than cluster.memory_gib says" in way


def test_a_host_that_is_too_small_is_the_field_that_is_named_with_what_is_enough() -> None:
    question = ask(gpus_per_node=2, host_memory_bytes=8 * GIB)
    field, _, remedies = refusal(question, GPUS)
    assert field == "cluster.memory_gib" and [way for way in remedies if way.startswith("cluster.memory_gib: ")]
    need = next(change.value for change in nearest(question) if change.field == "cluster.memory_gib")
    assert isinstance(need, int) and 8 < need < 24
    assert chosen(replace(question, host_memory_bytes=need * GIB)).fits
    assert choose(replace(question, host_memory_bytes=(need - 1) * GIB)).best is None


def test_fixed_fields_are_freed_as_few_as_are_enough() -> None:
    question = ask("Qwen/Qwen-7B-Chat", gpus_per_node=2, zero_stage=2, offload_optimizer=False, micro_batch_size=64)
    question = replace(question, gradient_checkpointing=False, rows_per_gpu=64)
    assert [change.field for change in nearest(question, GPUS)] == ["cluster.gpus_per_node"]
    (way,) = together(question, GPUS)
    assert way.startswith("without ") and way.count(" and ") == 1 and "(ZeRO-" in way


def test_a_cluster_that_is_hopeless_is_told_the_gpu_and_the_nodes_that_are_not() -> None:
    question = ask("Qwen/Qwen2.5-72B-Instruct", "RTX-4090", sequence_length=131072)
    assert nearest(question, GPUS) == []
    (way,) = together(question, [gpu for gpu in GPUS if not gpu.is_cpu])
    gpu, nodes = way.split()[1], int(way.split()[4])
    assert chosen(replace(question, gpu=load_gpu(gpu), nodes=nodes)).fits


def test_a_sequence_that_no_cluster_holds_is_told_the_longest_that_one_does() -> None:
    question = ask("Qwen/Qwen2.5-72B-Instruct", sequence_length=10_000_000)
    (way,) = together(question, [load_gpu("H200")])
    assert way.startswith("train.model_max_length: ") and "on 64 nodes of H200" in way


def test_a_job_that_fits_needs_no_nearest() -> None:
    assert nearest(ask(), GPUS) == []


@pytest.mark.parametrize(
    ("written", "rows", "more", "value"),
    [
        (16, 16, {}, 8),
        (24, 24, {}, 8),
        (16, 16, {"gradient_accumulation_steps": 1}, 8),
        (16, 16, {"global_batch_size": 16}, 8),
        (16, 16, {"global_batch_size": 16, "gradient_accumulation_steps": 1}, None),
    ],
)
def test_of_micro_batches_the_largest_that_fits_is_suggested(
    written: int, rows: int, more: dict[str, int], value: int | None
) -> None:
    question = ask(
        "Qwen/Qwen2.5-7B-Instruct",
        sequence_length=8192,
        micro_batch_size=written,
        rows_per_gpu=rows,
        tiled_mlp=False,
        activation_offloading=False,
        **more,
    )
    found = [change.value for change in nearest(question) if change.field == "train.per_device_train_batch_size"]
    assert found == ([] if value is None else [value])
    if value is not None:
        assert not choose(replace(question, micro_batch_size=16, rows_per_gpu=16, gradient_accumulation_steps=1)).best


def test_many_times_the_nodes_are_a_remedy_only_where_no_nearer_one_exists() -> None:
    question = ask("Qwen/Qwen2.5-72B-Instruct", gpus_per_node=4, zero_stage=3, offload_optimizer=False)
    assert [change.field for change in nearest(question, GPUS)] == ["deepspeed.offload_optimizer"]
    nodes = [change.value for change in nearest(replace(question, gpus_per_node=1)) if change.field == "cluster.nodes"]
    assert nodes and int(str(nodes[0])) > 4
