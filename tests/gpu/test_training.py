"""A small model through the whole path on one GPU: launcher, DeepSpeed, checkpoints, export."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.train]

SHAPE = {"hidden_size": 256, "intermediate_size": 512, "torch_dtype": "bfloat16"}
ON_GPU: dict[str, Any] = {
    "world_size": 1,
    "device": "cuda",
    "precision": "bf16",
    "attention": "varlen",
    "fused_loss": "chunked",
    "training__learning_rate": 1e-3,
    "training__num_train_epochs": 3.0,
}


def write_run(folder: Path, stage: int, offload: bool = False, **changes: Any) -> Path:
    """Write a run of one process on the GPU; returns its train.yaml."""
    train_yaml = tiny.write_run(folder, stage, **{**ON_GPU, **changes})
    shape = tiny.MODEL | SHAPE | ({"torch_dtype": "float16"} if changes.get("precision") == "fp16" else {})
    (folder.parent / "tiny.yaml").write_text(yaml.safe_dump(shape), encoding="utf-8")
    if offload:
        path = folder / "deepspeed.json"
        values = json.loads(path.read_text())
        values["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        path.write_text(json.dumps(values))
    return train_yaml


def losses(folder: Path) -> list[float]:
    """Return the loss of every step, those of the last attempt where a step was trained twice."""
    return list({line["step"]: line["loss"] for line in tiny.metrics(folder, "step")}.values())


@pytest.mark.parametrize(
    ("stage", "offload", "changes"),
    [
        pytest.param(0, False, {}, id="bf16-zero0"),
        pytest.param(1, False, {}, id="bf16-zero1"),
        pytest.param(2, False, {}, id="bf16-zero2"),
        pytest.param(2, False, {"torch_compile": True}, id="bf16-zero2-compiled"),
        pytest.param(2, False, {"gradient_checkpointing": True}, id="bf16-zero2-checkpointing"),
        pytest.param(2, True, {}, id="bf16-zero2-offload"),
        pytest.param(3, False, {}, id="bf16-zero3"),
        pytest.param(2, False, {"precision": "fp16", "attention": "sdpa"}, id="fp16-zero2-as-on-V100"),
        pytest.param(3, False, {"precision": "fp16", "attention": "sdpa"}, id="fp16-zero3-as-on-V100"),
    ],
)
def test_it_trains_saves_goes_on_and_exports(
    tmp_path: Path, stage: int, offload: bool, changes: dict[str, Any]
) -> None:
    calm = write_run(tmp_path / "calm", stage, offload, **changes)
    code, output = tiny.run(calm, processes=1, timeout=400)
    assert code == 0, output
    expected = losses(calm.parent)
    assert expected[-1] < expected[0] - 0.5
    saves = tiny.metrics(calm.parent, "save")
    assert saves and all(save["pause_seconds"] <= save["seconds"] for save in saves)
    assert (calm.parent / "done.json").exists()  # written after the export was loaded and compared

    rough = write_run(tmp_path / "rough", stage, offload, **changes)
    process = tiny.start(rough, processes=1)
    tiny.wait_for_step(rough.parent, 14, process, 400)
    os.kill(tiny.workers(process)[0].pid, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL, process.communicate()[0]
    code, output = tiny.run(rough, processes=1, timeout=400)
    assert code == 0 and "resuming from step-" in output, output
    # Atomic additions in the backward of attention come in any order: equal to rounding, not bit for bit.
    assert losses(rough.parent) == pytest.approx(expected, abs=0.05)


def test_a_killed_rank_is_forked_again_and_uses_the_gpu(tmp_path: Path) -> None:
    train_yaml = write_run(tmp_path / "run", 2)
    process = tiny.start(train_yaml, processes=1, in_place=2)
    tiny.wait_for_step(train_yaml.parent, 14, process, 400)
    os.kill(tiny.workers(process)[0].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "restarting all ranks in place (1 of 2" in output and "starts new processes" not in output
    assert [line.get("in_place", 0) for line in tiny.metrics(train_yaml.parent, "start")] == [0, 1]


def test_the_random_state_of_the_gpu_and_the_loss_scale_come_back(tmp_path: Path) -> None:
    import torch

    train_yaml = write_run(tmp_path / "run", 2, precision="fp16", attention="sdpa", training__save_total_limit=9)
    code, output = tiny.run(train_yaml, processes=1)
    assert code == 0, output
    folder = max((train_yaml.parent / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    state = torch.load(folder / "rng_state_0.pth", weights_only=False)
    assert state["cuda"].numel() > 0
    shard = next(folder.rglob("*optim_states.pt"))
    scaler = torch.load(shard, weights_only=False, map_location="cpu")["optimizer_state_dict"]["loss_scaler"]
    assert scaler.cur_scale > 0


def test_too_large_a_batch_ends_with_the_plan_the_peak_and_three_ways_out(tmp_path: Path) -> None:
    train_yaml = write_run(
        tmp_path / "run",
        0,
        fused_loss="none",
        training__per_device_train_batch_size=64,
        plan__memory_bytes_per_gpu=3 * 2**30 // 2,
    )
    shape = tiny.MODEL | SHAPE | {"vocab_size": 1_000_000}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(shape), encoding="utf-8")
    tiny.conversations(tmp_path / "data.json", 1200)
    code, output = tiny.run(train_yaml, processes=1, PYTORCH_CUDA_ALLOC_CONF="per_process_memory_fraction:0.15")
    assert code == 10, output
    line = next(line for line in output.splitlines() if "out of memory" in line)
    assert "planned 1.5 GiB, peak before the failure" in line and "the GPU has" in line
    assert "each of these needs less: per_device_train_batch_size: 32 with gradient_accumulation_steps: 4" in line
