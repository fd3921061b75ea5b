"""What the end-to-end tests share: the user's environment, a short demo job, what must be true of a finished run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = CHECKOUT / "configs" / "jobs" / "demo.yaml"
# Enough steps to see the loss fall.
EPOCHS = 4
SHORT = ["--set", f"train.num_train_epochs={EPOCHS}", "--set", "train.save_steps=4"]


def environment(**extra: str) -> dict[str, str]:
    """Return the environment of a user who has activated the virtual environment."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "NO_COLOR": "1", **extra}


def metrics(run: Path, kind: str) -> list[dict[str, Any]]:
    """Return the lines of one type in the run's metrics.jsonl."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["type"] == kind]


def check_finished(run: Path, *, world_size: int) -> None:
    """Check that a run is complete: all ranks took part, the loss fell, and the files of the run folder are there."""
    starts, steps = metrics(run, "start"), metrics(run, "step")
    assert [start["world_size"] for start in starts] == [world_size] * len(starts)
    done = json.loads((run / "done.json").read_text())
    assert [step["step"] for step in steps] == list(range(1, done["total_steps"] + 1))
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert json.loads((run / "heartbeat").read_text())["state"] == "done"
    for name in ("job.yaml", "train.yaml", "deepspeed.json"):
        assert (run / name).stat().st_size
    assert list(run.glob("events.*")) and list(run.glob("checkpoints/step-*/manifest.json"))


def check_shared_rows(run: Path, *, size: int) -> None:
    """Check that ``size`` ranks shared each row in a run of SHORT, and that each row counts once an epoch."""
    assert [start["sequence_parallel_size"] for start in metrics(run, "start")] == [size]
    (index,) = (path for path in run.parent.rglob("index.json") if "stats" in path.read_text())
    tokens = json.loads(index.read_text())["stats"]["train"]["tokens"]
    assert sum(step["tokens"] for step in metrics(run, "step")) == EPOCHS * tokens


def check_model_loads(run: Path) -> None:
    """Check that stock transformers loads the trained model and that it generates text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("你好").input_ids])).logits
    assert logits.isfinite().all()
