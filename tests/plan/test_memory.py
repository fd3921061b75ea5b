"""Memory: the anchors of the published formulas, and what must grow or shrink with what."""

from __future__ import annotations

import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.facts import fact
from qwen_job.facts.hardware import load_gpu
from qwen_job.facts.model_shapes import load_model_shape, model_shape_from_config
from qwen_job.plan.estimate.activations import (
    activation_bytes,
    layer_activation_bytes,
    layers_activation_bytes,
    loss_bytes,
)
from qwen_job.plan.estimate.layout import Layout
from qwen_job.plan.estimate.memory import (
    Constants,
    MemoryEstimate,
    estimate_memory,
    model_state_bytes,
    zero_settings,
)
from qwen_job.plan.search.question import MARGIN
from qwen_job.resources import resource
from qwen_job.text import GIB
from tests.jobs import plan

SMALL = load_model_shape("Qwen/Qwen-1_8B-Chat")
A100 = load_gpu("A100-80G")


def estimate(**options: Any) -> MemoryEstimate:
    base: dict[str, Any] = {
        "shape": SMALL,
        "gpu": A100,
        "world_size": 2,
        "gpus_per_node": 2,
        "zero_stage": 2,
        "gradient_accumulation_steps": 2,
    }
    extra = {key: options.pop(key) for key in ("zero", "constants") if key in options}
    return estimate_memory(Layout(**{**base, **options}), **extra)


def alone(length: int, **options: Any) -> Layout:
    """One row of ``length`` tokens of the small model on one device."""
    return Layout(
        **{"shape": SMALL, "world_size": 1, "gpus_per_node": 1, "zero_stage": 2, **options}, sequence_length=length
    )


@pytest.mark.parametrize(
    ("stage", "gib"), [(1, (27.4, 17.1, 12.0, 9.4)), (2, (27.4, 15.4, 9.4, 6.4)), (3, (27.4, 13.7, 6.8, 3.4))]
)
def test_model_states_of_the_reference_on_1_2_4_8_gpus(stage: int, gib: tuple[float, ...]) -> None:
    for world_size, expected in zip((1, 2, 4, 8), gib, strict=True):
        states = model_state_bytes(SMALL.num_parameters, zero_stage=stage, world_size=world_size)
        assert sum(states.values()) / GIB == pytest.approx(expected, abs=0.05)


def test_offload_leaves_two_bytes_a_parameter_on_the_gpu() -> None:
    states = model_state_bytes(SMALL.num_parameters, zero_stage=2, world_size=4, offload_optimizer=True)
    assert sum(states.values()) == 2 * SMALL.num_parameters


def test_half_precision_adamw_is_eight_bytes_a_parameter() -> None:
    states = model_state_bytes(10, zero_stage=0, world_size=1, master_weights=False)
    assert sum(states.values()) == 80


def test_host_memory_of_the_reference_job_is_what_users_report() -> None:
    """ZeRO-2 with offload on up to four GPUs: 29 to 44 GB without the processes themselves."""
    host = dict(estimate(offload_optimizer=True).host)
    host.pop("processes")
    assert 29e9 < sum(host.values()) < 46e9


@pytest.mark.parametrize(("length", "gib"), [(512, 0.87), (2048, 3.48), (8192, 13.9)])
def test_logits_of_the_plain_loss(length: int, gib: float) -> None:
    assert loss_bytes(alone(length, fused_loss="none")) / GIB == pytest.approx(gib, rel=0.005)


@pytest.mark.parametrize("kind", ["torch", "liger"])
def test_a_fused_loss_is_small_at_every_length(kind: str) -> None:
    assert all(0.05 < loss_bytes(alone(length, fused_loss=kind)) / GIB < 0.9 for length in (512, 2048, 8192))


def test_activations_of_a_layer_lie_in_the_measured_range() -> None:
    """24 to 48 x 2 bytes x tokens x hidden size; Qwen3-4B was measured at 38."""
    for name in ("Qwen/Qwen-1_8B-Chat", "Qwen/Qwen3-4B", "Qwen/Qwen2.5-7B-Instruct"):
        shape = load_model_shape(name)
        assert 20 < layer_activation_bytes(alone(1000, shape=shape)) / (2 * 1000 * shape.hidden_size) < 40


def test_checkpointing_keeps_two_bytes_a_hidden_value_and_one_layer() -> None:
    kept = activation_bytes(alone(8192))["saved"]
    assert kept == pytest.approx(2 * 24 * 2048 * 8192, rel=0.2)


def test_sixteen_thousand_tokens_without_checkpointing_fit_80_gb() -> None:
    plan = estimate(world_size=1, gpus_per_node=1, sequence_length=16384, gradient_checkpointing=False)
    assert plan.fits(margin=0.0)


def test_the_total_is_the_sum_of_its_items() -> None:
    plan = estimate(sequence_length=2048)
    assert plan.gpu_bytes == sum(plan.gpu.values())
    assert plan.moments[plan.peak] == max(plan.moments.values())
    assert all(size > 0 for size in (*plan.gpu.values(), *plan.host.values()))


def test_a_cpu_job_has_all_its_memory_on_the_host() -> None:
    plan = estimate(gpu=load_gpu("CPU"), precision="fp32", attention="sdpa", fused_loss="none")
    assert plan.gpu == {} and plan.capacity is None and plan.fits()
    assert plan.host["weights"] == 2 * 4 * SMALL.num_parameters
    assert plan.host["processes"] == 1_400_000_000 and "loading the weights" not in plan.host


def test_the_ranks_of_a_node_share_one_copy_of_the_weights_while_they_load() -> None:
    large = load_model_shape("Qwen/Qwen2.5-72B-Instruct")
    one = estimate(shape=large, world_size=24, gpus_per_node=8, zero_stage=3)
    assert one.host["loading the weights"] == 2 * large.num_parameters
    assert one.host_needed < 512 * GIB
    converted = estimate(shape=large, world_size=24, gpus_per_node=8, zero_stage=3, precision="fp16")
    assert converted.host["loading the weights"] == 8 * 2 * large.num_parameters


def test_weights_that_a_gpu_cannot_hold_twice_are_flattened_on_the_host_by_each_rank() -> None:
    """DeepSpeed's stage_1_and_2.py: 14B is flattened on an A100 of 80 GB, and 32B, 61 GiB, is not."""
    small, large = (load_model_shape(f"Qwen/Qwen2.5-{size}B-Instruct") for size in (14, 32))
    for shape, copies in ((small, 1), (large, 1 + 8 * 2)):
        plan = estimate(shape=shape, world_size=16, gpus_per_node=8, zero_stage=2)
        assert plan.host["loading the weights"] == copies * 2 * shape.num_parameters
    assert estimate(shape=large, world_size=16, gpus_per_node=8, zero_stage=3).host["loading the weights"] == (
        2 * large.num_parameters
    )


def test_an_unknown_gpu_is_not_judged() -> None:
    assert estimate(gpu=None, sequence_length=100_000).fits()


def test_qwen_7b_on_one_gpu_needs_what_users_are_told() -> None:
    """7B full: not on 1 x 80 GB with ZeRO-2, but on two with ZeRO-3 and on four with ZeRO-2."""
    large = load_model_shape("Qwen/Qwen-7B-Chat")
    assert not estimate(shape=large, world_size=1, gpus_per_node=1).fits()
    assert estimate(shape=large, zero_stage=3).fits()
    assert estimate(shape=large, world_size=4, gpus_per_node=4).fits()


def test_qwen_14b_needs_four_gpus_with_zero_3() -> None:
    large = load_model_shape("Qwen/Qwen-14B-Chat")
    assert estimate(shape=large, world_size=4, gpus_per_node=4, zero_stage=3).fits()
    assert not estimate(shape=large, world_size=2, gpus_per_node=2, zero_stage=3).fits()


def test_the_deepspeed_settings_that_run_are_the_ones_that_count() -> None:
    options = {"sequence_length": 8192, "fused_loss": "none"}
    less = estimate(**options, zero={**zero_settings(2), "reduce_bucket_size": 1_000_000})
    assert less.gpu["reduce buckets"] < estimate(**options).gpu["reduce buckets"]


@pytest.mark.parametrize("stage", range(4))
def test_the_base_configs_leave_nothing_to_guess(stage: int) -> None:
    text = fact("deepspeed", f"zero{stage}.json").read_text(encoding="utf-8")
    assert "auto" not in text and "scheduler" not in text and '"optimizer"' not in text
    assert zero_settings(stage)["stage"] == stage


def test_constants_change_what_they_name() -> None:
    more = estimate(constants=Constants(context_bytes=10**9, nccl_bytes=10**9, fragmentation=0.0))
    assert more.gpu["CUDA context"] == more.gpu["NCCL"] == 10**9
    assert "fragmentation" not in more.gpu


OPTIONS = st.fixed_dictionaries(
    {
        "zero_stage": st.integers(0, 3),
        "offload_optimizer": st.booleans(),
        "precision": st.sampled_from(["bf16", "fp16", "fp32"]),
        "micro_batch_size": st.integers(1, 32),
        "sequence_length": st.integers(1, 32768),
        "gradient_checkpointing": st.booleans(),
        "attention": st.sampled_from(["varlen", "sdpa", "eager"]),
        "fused_loss": st.sampled_from(["torch", "chunked", "liger", "none"]),
        "gradient_accumulation_steps": st.integers(1, 3),
        "world_size": st.sampled_from([1, 2, 8, 64]),
    }
)


@given(OPTIONS)
def test_more_of_anything_never_takes_less(options: dict[str, Any]) -> None:
    options["gpus_per_node"] = min(8, options["world_size"])
    base = estimate(**options).gpu_bytes
    assert base > 0
    for field in ("micro_batch_size", "sequence_length"):
        assert estimate(**{**options, field: 2 * options[field]}).gpu_bytes >= base
    assert estimate(**options, shape=load_model_shape("Qwen/Qwen-7B-Chat")).gpu_bytes > base


@given(OPTIONS)
def test_what_saves_memory_never_costs_any(options: dict[str, Any]) -> None:
    options["gpus_per_node"] = min(8, options["world_size"])
    base = estimate(**options)
    more = {**options, "world_size": 2 * options["world_size"]}
    if options["world_size"] > 1:  # the second GPU brings NCCL and gathering
        assert estimate(**more).gpu_bytes <= base.gpu_bytes
    kept = activation_bytes(alone(4096))["saved"]
    assert kept < activation_bytes(alone(4096, gradient_checkpointing=False))["saved"]
    if not options["offload_optimizer"] and options["zero_stage"] == 2:
        assert sum(base.moments.values()) > sum(estimate(**{**options, "offload_optimizer": True}).moments.values()) / 2


def test_published_peaks_are_met_within_five_percent_at_the_median() -> None:
    path = resource("benchmarks", "bench_memory.py")
    spec = importlib.util.spec_from_file_location("bench_memory", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows = yaml.safe_load(bench.ROWS.read_text(encoding="utf-8"))["rows"]
    errors = [abs(bench.predict(row) / row["bytes"] - 1) for row in rows if row["use"] == "test"]
    assert statistics.median(errors) < 0.05
    assert max(errors) < 0.15
    # With all that the allocator may hold, none is above the plan by more than the margin that it keeps free.
    assert all(row["bytes"] < bench.predict(row, at_most=True) / (1 - MARGIN) for row in rows)


def large(**options: Any) -> Layout:
    """Eight rows of 2,048 tokens on one GPU, as they were measured on an H200."""
    layout = alone(2048, gpu=A100, fused_loss="chunked", fused_norms=True, gradient_checkpointing=False)
    return layout._replace(micro_batch_size=8, gradient_accumulation_steps=4, **options)


def test_compiled_layers_and_loss_take_what_was_measured_less() -> None:
    """60.4 and 54.7 GiB (BENCHMARKS.md)."""
    less = estimate_memory(large()).moments["loss"] - estimate_memory(large(compiled=True)).moments["loss"]
    assert less / GIB == pytest.approx(60.4 - 54.7, abs=0.2)


def test_a_lone_rank_of_our_trainer_has_no_buckets_and_no_copy_in_16_bits() -> None:
    theirs, ours = estimate_memory(large()), estimate_memory(large(lean_zero=True))
    assert "reduce buckets" in theirs.gpu and "reduce buckets" not in ours.gpu
    assert theirs.moments["optimizer"] - ours.moments["optimizer"] == 2 * SMALL.num_parameters
    both = {"world_size": 2, "gpus_per_node": 2}
    assert estimate_memory(large(**both)) == estimate_memory(large(**both, lean_zero=True))


def test_an_allocator_whose_segments_cannot_grow_may_hold_more() -> None:
    grows, stays = estimate_memory(large()), estimate_memory(large(expandable_segments=False))
    states = 16 * SMALL.num_parameters
    assert stays.gpu_bytes - grows.gpu_bytes == grows.moments["optimizer"] - states
    assert stays.gpu["held by the allocator"] == stays.gpu_bytes - grows.gpu_bytes


@pytest.mark.parametrize(
    ("env", "grow"),
    [
        ({}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128, expandable_segments: True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        ({"PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync"}, False),
    ],
)
def test_the_job_decides_whether_segments_grow(tmp_path: Path, env: dict[str, str], grow: bool) -> None:
    memory = plan(tmp_path, f"env: {json.dumps(env)}\n").memory
    assert memory is not None and ("held by the allocator" not in memory.gpu) == grow


@pytest.mark.parametrize(("model", "gb"), [("qwen3-30b-a3b", 61.1), ("qwen3.5-35b-a3b", 69.3)])
def test_a_mixture_needs_the_memory_of_all_its_experts(model: str, gb: float) -> None:
    states = model_state_bytes(load_model_shape(model).num_parameters, zero_stage=3, world_size=8)
    assert sum(states.values()) / 1e9 == pytest.approx(gb, abs=0.1)


def test_zero_3_gathers_all_experts_of_a_layer() -> None:
    shape = load_model_shape("qwen3-30b-a3b")
    eight: dict[str, Any] = {"shape": shape, "world_size": 8, "gpus_per_node": 8, "zero_stage": 3}
    gathered = estimate(**eight).gpu["gathered weights"]
    assert gathered > 2 * 128 * 3 * 2048 * 768  # more than stage3_max_live_parameters
    smaller = estimate(**eight, offload_optimizer=True)
    assert smaller.fits() and smaller.gpu_bytes < 40e9 < smaller.host["offloaded optimizer"]


def test_linear_attention_without_kernels_keeps_more() -> None:
    layout = Layout(load_model_shape("qwen3.5-2b"), 1, 1, zero_stage=2, gpu=A100, sequence_length=2048)
    older = layout._replace(gpu=load_gpu("V100-32G"))
    assert 1.5 < layers_activation_bytes(older) / layers_activation_bytes(layout) < 4


FAMILY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 300, "head_dim": 32,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
MIXTURE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
HYBRID = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
          "linear_value_head_dim": 24}  # fmt: skip


@pytest.mark.train
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "config",
    [
        {**FAMILY, "model_type": "qwen3"},
        {**FAMILY, **MIXTURE, "model_type": "qwen3_moe", "norm_topk_prob": True},
        {**FAMILY, **HYBRID, "model_type": "qwen3_5_text"},
        {**FAMILY, **HYBRID, **MIXTURE, "shared_expert_intermediate_size": 40, "model_type": "qwen3_5_moe_text"},
    ],
    ids=lambda config: config["model_type"],
)
def test_activations_are_what_autograd_saves(config: dict[str, Any], precision: str) -> None:
    """Four layers of each family, 128 tokens: half a second each, and the imports."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING[config["model_type"]](**config, use_cache=False, attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(settings).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.train().model(input_ids=torch.zeros((1, 128), dtype=torch.long)).last_hidden_state
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert hidden.shape == (1, 128, 64)
    shape = model_shape_from_config(config, "tiny")
    layout = Layout(shape, 1, 1, zero_stage=0, gpu=load_gpu("CPU"), precision=precision, sequence_length=128)
    layout = layout._replace(gradient_checkpointing=False)
    planned = activation_bytes(layout)
    assert planned["saved"] + planned["final norm"] == pytest.approx(counted, rel=0.03)
