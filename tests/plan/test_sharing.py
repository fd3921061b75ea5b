"""How many GPUs share a row: the plan's choice, what follows from it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.facts.sequence_parallel import Divided, fault, rank_name, sizes
from qwen_job.plan.deepspeed import deepspeed_config
from qwen_job.plan.estimate.speed import exchange_bytes
from qwen_job.plan.search.choice import choose, layout_of
from qwen_job.plan.search.longest import STEP, longest_rows
from qwen_job.plan.search.smallest import smallest_clusters
from qwen_job.plan.train_config import train_config
from qwen_job.text import GIB

from .jobs import ask, job_of, plan_of

# What else makes room for a row is in test_long_rows.py.
PLAIN = ("train.tiled_mlp=false", "train.activation_offloading=false")
QWEN3 = ("model=Qwen/Qwen3-4B", "cluster.gpu=H100-80G", "cluster.gpus_per_node=4", *PLAIN)
LONG = (*QWEN3, "train.model_max_length=262144")


def refused(folder: Path, *sets: str) -> str:
    with pytest.raises(JobError) as caught:
        plan_of(folder, *sets)
    return str(caught.value)


@pytest.mark.parametrize(
    ("heads", "keys", "found"),
    [(14, 2, [1, 2]), (12, 2, [1, 2, 4]), (28, 4, [1, 2, 4]), (40, 8, [1, 2, 4, 8]), (16, 2, [1, 2, 4, 8])],
    ids=["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B", "Qwen2.5-14B", "Qwen2.5-3B"],
)
def test_sizes_divide_heads_key_value_heads_and_gpus(heads: int, keys: int, found: list[int]) -> None:
    assert sizes(Divided(heads, keys, 4096, 8)) == found
    assert [size for size in range(1, 9) if not fault(size, Divided(heads, keys, 4096, 8))] == found


def test_rows_that_fit_on_one_gpu_are_not_shared(tmp_path: Path) -> None:
    made = plan_of(tmp_path, *QWEN3, "train.model_max_length=8192")
    assert made.choice.sequence_parallel_size == 1 and train_config(made).sequence_parallel_size == 1
    decision = next(one for one in made.decisions if one.field == "train.sequence_parallel_size")
    assert decision.reason == "rows of 8,192 tokens fit on one GPU"


def test_rows_that_do_not_fit_are_shared_by_as_few_gpus_as_are_enough(tmp_path: Path) -> None:
    made = plan_of(tmp_path, *LONG)
    assert made.choice.sequence_parallel_size == train_config(made).sequence_parallel_size == 2
    decision = next(one for one in made.decisions if one.field == "train.sequence_parallel_size")
    assert decision.reason.startswith("rows of 262,144 tokens do not fit on one GPU: needs ")
    assert "does not fit even with" in refused(tmp_path, *LONG, "train.sequence_parallel_size=1")
    assert "train.sequence_parallel_size: 2 instead of 1 fits" in refused(
        tmp_path, *LONG, "train.sequence_parallel_size=1"
    )


def test_a_group_counts_as_one_in_every_batch(tmp_path: Path) -> None:
    made = plan_of(tmp_path, *LONG, "train.global_batch_size=6", "train.sequence_parallel_size=2")
    assert made.batch.micro_batch_size * made.batch.gradient_accumulation_steps == 3
    assert made.batch.global_batch_size == train_config(made).global_batch_size == 6
    config = deepspeed_config(made.job, made.choice, made.precision, made.batch)
    assert config["train_batch_size"] == 6
    accumulated = plan_of(tmp_path, *LONG, "train.global_batch_size=8", "train.gradient_accumulation_steps=4")
    assert (accumulated.batch.micro_batch_size, accumulated.batch.global_batch_size) == (1, 8)


def test_a_batch_that_does_not_divide_is_no_reason_to_share_rows(tmp_path: Path) -> None:
    text = refused(tmp_path, *QWEN3, "train.global_batch_size=2")
    assert "2 does not divide by 4 (1 x 4 GPUs); the nearest that does is 4" in text
    assert plan_of(tmp_path, *LONG, "train.global_batch_size=2").choice.sequence_parallel_size == 2
    text = refused(tmp_path, *LONG, "train.global_batch_size=3", "train.sequence_parallel_size=2")
    assert "3 does not divide by 2 (1 x 4 GPUs, sequence_parallel_size 2); the nearest that does is 2 or 4" in text


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (("cluster.gpus_per_node=6", "train.sequence_parallel_size=4"), "4 does not divide the 6 GPUs of a node"),
        (
            ("cluster.nodes=2", "cluster.gpus_per_node=1", "train.sequence_parallel_size=2"),
            "a node has 1 GPU, and a group must be inside one; sizes that work here: 1",
        ),
        (("cluster.gpus_per_node=7", "train.sequence_parallel_size=2"), "sizes that work here: 1"),
        (
            ("model=Qwen/Qwen2.5-7B-Instruct", "cluster.gpus_per_node=8", "train.sequence_parallel_size=8"),
            "8 does not divide the model's 28 attention heads; sizes that work here: 1, 2, 4",
        ),
        (
            ("model=Qwen/Qwen2.5-14B-Instruct", "cluster.gpus_per_node=5", "train.sequence_parallel_size=5"),
            "5 neither divides the model's 8 key-value heads nor is a multiple of them; sizes that work here: 1",
        ),
        (
            ("train.sequence_parallel_size=4", "train.model_max_length=1022"),
            "4 does not divide rows of 1022 tokens; sizes that work here: 1, 2",
        ),
        (
            ("model=Qwen/Qwen3.5-27B", "cluster.gpus_per_node=12", "train.sequence_parallel_size=12"),
            "12 does not divide the 16 heads of the model's linear attention; sizes that work here: 1, 2, 4",
        ),
        (("train.sequence_parallel_size=2", "train.attention=eager"), "eager attention holds a matrix of rows x rows"),
        (("train.sequence_parallel_size=2", "train.neftune_noise_alpha=5.0"), "train.neftune_noise_alpha depends on"),
    ],
)
def test_a_size_that_cannot_work_is_refused_with_those_that_do(tmp_path: Path, sets: tuple[str, ...], why: str) -> None:
    text = refused(tmp_path, *QWEN3, *sets)
    assert "train.sequence_parallel_size: " in text and why in text


def test_layers_of_shared_rows_are_compiled_where_the_job_says_so(tmp_path: Path) -> None:
    shared = (*QWEN3, "train.sequence_parallel_size=2")
    made = plan_of(tmp_path, *shared)
    (decision,) = [one for one in made.decisions if one.field == "train.torch_compile"]
    assert made.torch_compile is False and "rows that GPUs share" in decision.reason
    assert plan_of(tmp_path, *shared, "train.torch_compile=true").torch_compile is True


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("Qwen/Qwen3.5-4B", [1, 2, 4, 8]),
        ("Qwen/Qwen3.5-27B", [1, 2, 4, 8]),
        ("Qwen/Qwen3-30B-A3B", [1, 2, 4, 8]),
        ("Qwen/Qwen3.5-35B-A3B", [1, 2, 4, 8]),
    ],
)
def test_linear_attention_and_experts_can_share_rows(model: str, found: list[int]) -> None:
    assert ask(model, "H100-80G", gpus_per_node=8, sequence_length=2**20).sizes == found


def test_noise_that_depends_on_the_row_keeps_rows_unshared(tmp_path: Path) -> None:
    noisy = (*LONG, "train.neftune_noise_alpha=5.0")
    assert "does not fit even with" in refused(tmp_path, *noisy)


def test_a_slice_has_its_part_of_tokens_activations_and_exchange() -> None:
    question = ask("Qwen/Qwen3-4B", "H100-80G", gpus_per_node=4, sequence_length=131072, zero_stage=3)
    layouts = [
        layout_of(question, choice._replace(sequence_parallel_size=size))
        for size in (1, 2, 4)
        if (choice := choose(question).best)
    ]
    assert [layout.tokens for layout in layouts] == [131072, 65536, 32768]
    # Of a slice's queries and outputs (32 heads of 128) and keys and values (8), 3 times with checkpointing, all but
    # what a rank keeps for itself: 36 layers of bf16.
    steps = layouts[1].gradient_accumulation_steps
    assert exchange_bytes(layouts[0]) == 0
    assert exchange_bytes(layouts[1]) == steps * 3 * 36 * 65536 * 2 * 2 * (32 + 8) * 128 / 2


def test_linear_attention_exchanges_its_channels_gates_and_outputs() -> None:
    question = ask("Qwen/Qwen3.5-4B", "H100-80G", gpus_per_node=2, sequence_length=65536, zero_stage=3)
    best = choose(question).best
    assert best is not None
    layout = layout_of(question, best._replace(sequence_parallel_size=2, gradient_checkpointing=True))
    # Queries and keys of 16 heads, values, outputs and two numbers of 32 heads, of 128 each: 24 layers. Queries with
    # outputs of 16 heads, keys and values of 4, of 256 each: 8 layers.
    token = 24 * ((2 * 16 + 2 * 32) * 128 + 2 * 32) + 8 * (2 * 16 + 2 * 4) * 256
    assert exchange_bytes(layout) == layout.gradient_accumulation_steps * 3 * 32768 * 2 * token / 2


def test_long_rows_need_no_more_nodes_than_their_memory() -> None:
    question = ask("Qwen/Qwen3-4B", "H100-80G", gpus_per_node=8, sequence_length=2**20, tiled_mlp=False)
    best = choose(question).best
    assert best and best.sequence_parallel_size == 8 and best.needs.gpu_bytes < 80 * GIB


def test_the_smallest_cluster_may_share_rows(tmp_path: Path) -> None:
    own = smallest_clusters(job_of(tmp_path, *LONG))[0]
    assert own.choice and own.gpus_per_node % own.choice.sequence_parallel_size == 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_longest_row_fits_and_a_longer_one_does_not(tmp_path: Path, size: int) -> None:
    found = longest_rows(job_of(tmp_path, *QWEN3))
    one = next(one for one in found.here if one.size == size)
    fixed = (*QWEN3, f"train.sequence_parallel_size={size}", "train.per_device_train_batch_size=1")
    made = plan_of(tmp_path, *fixed, f"train.model_max_length={one.length}").choice
    assert made.needs.gpu == (one.choice.needs.gpu if one.choice else {})
    assert "does not fit even with" in refused(tmp_path, *fixed, f"train.model_max_length={one.length + STEP}")


def test_what_more_nodes_add_to_the_longest_row_is_told(tmp_path: Path) -> None:
    found = longest_rows(job_of(tmp_path, *QWEN3))
    assert [one.size for one in found.here] == [1, 2, 4]
    assert [one.length for one in found.here] == sorted(one.length for one in found.here)
    assert found.larger and found.larger.nodes == 2 and found.larger.length > found.best.length == found.here[2].length
    fixed = longest_rows(job_of(tmp_path, *QWEN3, "train.sequence_parallel_size=2", "train.global_batch_size=7"))
    assert [one.size for one in fixed.here] == [2] and fixed.best.length == found.here[1].length
    noisy = longest_rows(job_of(tmp_path, *QWEN3, "train.neftune_noise_alpha=5.0"))
    assert [one.size for one in noisy.here] == [1]


def test_a_rank_is_named_with_its_group() -> None:
    assert [rank_name(7, size) for size in (1, 4)] == ["rank 7", "rank 7 of group 1"]
