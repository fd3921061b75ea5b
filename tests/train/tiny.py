"""A run that takes seconds: a model of two layers, a few conversations, two processes on the CPU."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from qwen_job.sockets import free_port
from tests.support.ranks import ranks
from tests.support.tiny_models import MODEL as MODEL


def conversations(path: Path, count: int = 48) -> Path:
    """Write conversations in the reference's format, of many lengths."""
    rows = []
    for number in range(count):
        words = " ".join(f"{chr(97 + (number + i) % 26)}{i}" for i in range(2 + number % 7))
        rows.append(
            {
                "id": f"row_{number}",
                "conversations": [
                    {"from": "user", "value": f"Count {number}: {words}"},
                    {"from": "assistant", "value": f"Here: {words}. 好的 {number}."},
                ],
            }
        )
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def settings(folder: Path, stage: int = 2, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return train.yaml and deepspeed.json as values; ``changes`` use dots as ``__``."""
    train = {
        "version": 1,
        "name": "tiny",
        "output_dir": str(folder),
        "seed": 7,
        "world_size": 2,
        "device": "cpu",
        "precision": "fp32",
        "attention": "sdpa",
        "fused_loss": "none",
        "torch_compile": False,
        "gradient_checkpointing": False,
        "peak_tflops": None,
        "model": {
            "name": str(folder.parent / "tiny.yaml"),
            "source": "random",
            "revision": None,
            "cache_dir": str(folder.parent / "cache"),
        },
        "data": {
            "train": [{"path": str(folder.parent / "data.json"), "weight": 1.0}],
            "eval": [],
            "eval_split": 0.0,
            "format": "auto",
            "system_prompt": "You are a helpful assistant.",
            "max_length": 128,
            "long_samples": "truncate",
            "packing": True,
            "mask": "assistant",
            "cache_dir": str(folder.parent / "prepared"),
            "num_workers": 1,
        },
        "training": {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 2,
            "num_train_epochs": 2.0,
            "learning_rate": 5e-3,
            "warmup_ratio": 0.1,
            "weight_decay": 0.1,
            "save_steps": 4,
            "save_total_limit": 2,
            "dataloader_num_workers": 0,
            "report_to": [],
        },
        "stop": {"grace_seconds": 5},
        "guards": {"on_nan": "stop", "loss_spike_factor": None, "hang_seconds": 120},
        "plan": {"memory_bytes_per_gpu": None, "step_seconds": None, "tokens_per_second": None},
    }
    train = copy.deepcopy(train)
    for key, value in changes.items():
        place: Any = train
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    deepspeed = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    return train, deepspeed


def write_run(folder: Path, stage: int = 2, *, shape: dict[str, Any] = MODEL, split: int = 1, **changes: Any) -> Path:
    """Write a run folder ready to launch, of a random model of that ``shape``; returns its train.yaml.

    ``split``: ranks that split the experts of a mixture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder.parent / "data.json").exists():
        conversations(folder.parent / "data.json")
    (folder.parent / "tiny.yaml").write_text(yaml.safe_dump(shape), encoding="utf-8")
    train, deepspeed = settings(folder, stage, **changes)
    deepspeed |= {"expert_parallel": {"enabled": True, "autoep_size": split}} if split > 1 else {}
    (folder / "train.yaml").write_text(yaml.safe_dump(train), encoding="utf-8")
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed), encoding="utf-8")
    return folder / "train.yaml"


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a quiet, offline, single-threaded process."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    return {**os.environ, **quiet, **extra}


def start(
    train_yaml: Path, processes: int = 2, *, change: str = "", in_place: int = 0, **extra: str
) -> subprocess.Popen[str]:
    """Start a run on this machine through the node launcher.

    ``change``: what to change in its trainer, such as ``stop 4``; see tests/train/doctored.py. Torchrun starts it then.
    """
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--nproc_per_node", str(processes)]
    command += ["--in_place", str(in_place), "--"]
    if change:
        name, _, value = change.partition(" ")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), "-m", "tests.train.doctored", name, value, "--"]
    return subprocess.Popen(
        [*command, "--config", str(train_yaml)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**extra),
    )


def start_nodes(train_yaml: Path, nodes: int = 2) -> list[subprocess.Popen[str]]:
    """Start the launchers of several nodes on this machine, one process each, on hosts by their own names."""
    command = [sys.executable, "-m", "qwen_job.node.launcher", "--nnodes", str(nodes), "--nproc_per_node", "1"]
    command += ["--master_port", str(free_port())]
    return [
        subprocess.Popen(
            [*command, "--node_rank", str(node), "--", "--config", str(train_yaml)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(SLURMD_NODENAME=f"host{node}"),
        )
        for node in range(nodes)
    ]


def run(
    train_yaml: Path, processes: int = 2, timeout: float = 240, *, change: str = "", **extra: str
) -> tuple[int, str]:
    """Run to the end; returns the exit code and everything that was printed."""
    process = start(train_yaml, processes, change=change, **extra)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
        raise AssertionError(f"the run did not end in {timeout} s:\n{output}") from None
    return process.returncode, output


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one type in metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["type"] == kind]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Wait until metrics.jsonl has ``step``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in metrics(folder, "step")):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached:\n{process.communicate()[0]}")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the ranks below a launcher, lowest first."""
    return ranks(psutil.Process(process.pid).children(recursive=True))
