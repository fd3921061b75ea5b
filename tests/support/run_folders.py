"""Run folders to read: valid ones, or with chosen files replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

SETTINGS = {
    "name": "run",
    "output_dir": "/x",
    "world_size": 2,
    "device": "cuda",
    "model": {"name": "Qwen/Qwen-1_8B-Chat"},
    "data": {"train": [{"path": "/d"}], "max_length": 512},
    "training": {"learning_rate": 1e-5},
    "plan": {"memory_bytes_per_gpu": 10**10, "memory_capacity_bytes": 2 * 10**10, "memory_items": {"weights": 10**9}},
}
EVENTS: list[dict[str, Any]] = [
    {"type": "start", "time": 100.0, "step": 0, "resumed_from": None, "world_size": 2, "host": "a"},
    *(
        {"type": "step", "time": 100.0 + n, "step": n, "loss": 2.0 / n, "tokens": 100, "step_seconds": 1.0,
         "tokens_per_second": 100.0, "learning_rate": 1e-5, "mfu": 0.4, "memory_bytes": 10**9, "grad_norm": 1.0}
        for n in range(1, 9)
    ),
    {"type": "eval", "time": 109.0, "step": 8, "loss": 1.0, "perplexity": 2.7},
    {"type": "save", "time": 110.0, "step": 8, "seconds": 1.0},
    {"type": "guard", "time": 111.0, "step": 8, "action": "skip", "reason": "spike", "rows": [1]},
    {"type": "end", "time": 112.0, "step": 8, "train_seconds": 10.0},
]  # fmt: skip
FILES = {
    "train.yaml": yaml.safe_dump(SETTINGS),
    "metrics.jsonl": "".join(json.dumps(event) + "\n" for event in EVENTS),
    "heartbeat": json.dumps({"state": "training", "step": 8, "total_steps": 10, "loss": 0.2, "time": 111.0,
                             "attempt": 1, "tokens_per_second": 100.0, "eta_seconds": 20.0}),
    "done.json": json.dumps({"step": 8, "total_steps": 8, "train_loss": 0.5, "eval_loss": 0.4}),
    "evaluation.json": json.dumps({"after": {"loss": 0.5}, "answers": [{"prompt": "a", "after": "b"}]}),
    "deepspeed.json": json.dumps({"zero_optimization": {"stage": 2}}),
}  # fmt: skip


def run_folder(folder: Path, **files: str | bytes) -> Path:
    """Write a valid run folder, except for ``files`` (``heartbeat=...``, ``train_yaml=...``)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        content = files.get(name.replace(".", "_"), text)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
