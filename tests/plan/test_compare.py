"""Two plans side by side, and the smallest cluster."""

from __future__ import annotations

from pathlib import Path

from qwen_job.plan.compare import compare
from qwen_job.plan.search.smallest import smallest_clusters

from .jobs import job_of, plan_of


def test_the_same_job_has_no_difference(tmp_path: Path) -> None:
    assert compare(plan_of(tmp_path), plan_of(tmp_path)) == []


def test_only_what_differs_is_shown_with_what_comes_of_it(tmp_path: Path) -> None:
    sets = ("data.samples=64000", "train.global_batch_size=64")
    found = {one.field: one for one in compare(plan_of(tmp_path, *sets), plan_of(tmp_path, *sets, "cluster.nodes=2"))}
    assert (found["cluster.nodes"].first, found["cluster.nodes"].second) == (1, 2)
    assert found["GPUs"].ratio == 2 and found["cluster.nodes"].ratio is None
    assert (found["hours"].ratio or 1) < 1 and "train.learning_rate" not in found and "cost" not in found


def test_the_smallest_cluster_is_enough_and_half_of_it_is_not(tmp_path: Path) -> None:
    sets = ("model=Qwen/Qwen2.5-14B-Instruct", "cluster.gpus_per_node=4", "deepspeed.offload_optimizer=false")
    own, *others = smallest_clusters(job_of(tmp_path, *sets))
    assert own.gpu == "A100-80G" and own.choice and own.choice.fits
    assert plan_of(tmp_path, *sets, f"cluster.nodes={own.nodes}").choice.memory
    roomier = next(one for one in others if one.gpu == "H200-141G")
    assert roomier.nodes * roomier.gpus_per_node < own.nodes * own.gpus_per_node


def test_a_job_that_fits_nowhere_says_what_it_needs(tmp_path: Path) -> None:
    own = smallest_clusters(job_of(tmp_path, "train.model_max_length=10000000"))[0]
    assert own.choice is None and "GiB more than 79.1 GiB" in own.why


def test_a_global_batch_is_shared_out_over_any_cluster(tmp_path: Path) -> None:
    own = smallest_clusters(job_of(tmp_path, "train.global_batch_size=31", "model=Qwen/Qwen-7B-Chat"))[0]
    assert own.choice and 31 % (own.nodes * own.gpus_per_node) == 0


def test_what_the_gpu_cannot_do_leaves_it_out(tmp_path: Path) -> None:
    found = smallest_clusters(job_of(tmp_path, "train.bf16=true"))
    assert not [one for one in found if one.gpu.startswith("V100")]


def test_what_is_in_the_way_of_every_cluster_is_told_with_a_way_out(tmp_path: Path) -> None:
    batch = smallest_clusters(job_of(tmp_path, "model=Qwen/Qwen2.5-72B-Instruct", "train.global_batch_size=7"))[0]
    assert "7 rows a step do not divide by 4 GPUs or any larger cluster; write a multiple of 4" in batch.why
    long = smallest_clusters(job_of(tmp_path, "train.model_max_length=10000000"))[0]
    assert "\n  - train.model_max_length: sequences of " in long.why
