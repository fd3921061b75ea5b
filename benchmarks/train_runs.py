"""What the training benchmarks share: runs of the real trainer on made-up conversations, on a GPU or small on a CPU.

No weights are downloaded: the model has the shape of Qwen-1.8B-Chat (on a CPU a tiny one) and random numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from qwen_job.plan.estimate.calibrate import layout_of
from qwen_job.plan.estimate.memory import estimate_memory
from qwen_job.run.config import load_config
from qwen_job.run.sections import ModelSpec
from tests.train import tiny

ROOT = Path(__file__).resolve().parents[1]
# Dense bf16 peaks in TFLOP/s, as in qwen_job/facts/gpus; an unknown GPU gets no MFU.
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "A800": 312.0}
BIG = {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def on_gpu() -> bool:
    """Tell whether this machine has a GPU that torch can use."""
    import torch

    return torch.cuda.is_available()


def device_name() -> str:
    """Return the GPU's name, or the number of cores."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def peak_tflops() -> float | None:
    """Return the peak of this GPU, None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device_name()), None)


def model_values(big: bool) -> dict[str, Any]:
    """Return a model file: Qwen-1.8B's shape, or a tiny one with a small vocabulary."""
    shape = BIG if big else SMALL
    return {
        **tiny.MODEL,
        **shape,
        "name": "bench",
        "vocab_size": 151936 if big else 2048,
        "num_key_value_heads": shape["num_attention_heads"],
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16" if big else "float32",
    }


def write_conversations(path: Path, count: int) -> None:
    """Write conversations in the reference's format, of 50 to 800 words, the same in every run."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(3000)]
    rows = []
    for number in range(count):
        question, answer = (draw.choices(vocabulary, k=int(draw.lognormvariate(4.2, 0.6)) + 10) for _ in range(2))
        turns = [
            {"from": "user", "value": " ".join(question)},
            {"from": "assistant", "value": " ".join(answer)},
        ]
        rows.append({"id": f"row_{number}", "conversations": turns})
    path.write_text(json.dumps(rows), encoding="utf-8")


def settings(folder: Path, zero_stage: int, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return train.yaml for this machine, and deepspeed.json; keys of ``changes`` join levels with ``__``."""
    gpu = on_gpu()
    ours: dict[str, Any] = {
        "name": folder.name,
        "seed": 1,
        "device": "cuda" if gpu else "cpu",
        "precision": "bf16" if gpu else "fp32",
        "attention": "varlen" if gpu else "sdpa",
        "fused_loss": "chunked" if gpu else "none",
        "peak_tflops": peak_tflops(),
        "model__name": str(folder.parent / "bench.yaml"),
        "data__max_length": 2048 if gpu else 256,
        "data__num_workers": None,
        "training": {
            "per_device_train_batch_size": 8 if gpu else 1,
            "gradient_accumulation_steps": 4 if gpu else 2,
            "max_steps": 12 if gpu else 6,
            "num_train_epochs": 1000.0,
            "learning_rate": 1e-5,
            "save_steps": 0,
            "dataloader_num_workers": 2 if gpu else 0,
        },
    }
    train, _ = tiny.settings(folder, **{**ours, **changes})
    for section in ("stop", "guards", "plan"):
        del train[section]  # those of a test
    return train, {"zero_optimization": {"stage": zero_stage}}


def write_inputs(home: Path) -> None:
    """Write conversations and the model's file into ``home``, whose runs share what is made of them."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "data.json").exists():
        write_conversations(home / "data.json", 4000 if on_gpu() else 200)
        (home / "bench.yaml").write_text(yaml.safe_dump(model_values(on_gpu())))


def run(
    folder: Path,
    zero_stage: int = 2,
    processes: int = 1,
    until: Callable[[list[dict[str, Any]]], bool] | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train in ``folder`` until the last step, or ``until``, is in metrics.jsonl, and return its lines.

    The export is left out. A run that fails returns one line of type "failed".
    """
    folder.mkdir(parents=True)
    write_inputs(folder.parent)
    values, deepspeed = settings(folder, zero_stage, {"world_size": processes, **changes})
    (folder / "train.yaml").write_text(yaml.safe_dump(values))
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed))
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--nproc_per_node", str(processes), "--"]
    process = subprocess.Popen([*command, "--config", str(folder / "train.yaml")], cwd=ROOT)
    last = values["training"]["max_steps"]
    enough = until or (lambda lines: any(line["type"] == "step" and line["step"] == last for line in lines))
    while process.poll() is None:
        lines = metrics(folder)
        if enough(lines):
            end(process)
            return lines
        time.sleep(0.1)
    lines = metrics(folder)
    if process.returncode:
        stops = [line["reason"] for line in lines if line["type"] == "stop"]
        return [{"type": "failed", "exit_code": process.returncode, "reason": (stops or ["?"])[-1]}]
    return lines


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its ranks, and wait until they have given back what they held."""
    launcher = psutil.Process(process.pid)
    everyone = [*launcher.children(recursive=True), launcher]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everyone, timeout=60)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def planned_bytes(folder: Path) -> float | None:
    """Return what the plan foresees for the run in ``folder`` and torch's allocator can be asked for; None on a CPU."""
    if not on_gpu():
        return None
    train, deepspeed = load_config(folder / "train.yaml")
    shape = ModelSpec(name="Qwen/Qwen-1_8B-Chat", source="modelscope")
    layout = layout_of(train.model_copy(update={"model": shape}), deepspeed["zero_optimization"])
    estimate = estimate_memory(layout)
    return float(estimate.moments[estimate.peak])


def steady(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the step lines after warming up: the second half."""
    steps = [line for line in lines if line["type"] == "step"]
    return steps[len(steps) // 2 :]


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]
