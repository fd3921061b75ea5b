"""Our loop beside transformers' Trainer on the same batches: the same loss at every step, but for rounding."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.train import tiny

pytestmark = [pytest.mark.train, pytest.mark.slow]

# Micro-batches of three padded rows, two a step; the learning rate falls along a cosine after one step of warmup.
SETTINGS = {
    "world_size": 1,
    "data__packing": False,
    "training__per_device_train_batch_size": 3,
    "training__gradient_accumulation_steps": 2,
    "training__num_train_epochs": 1.0,
    "training__save_steps": 0,
}

THEIRS = """
import json, sys
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from qwen_job.data import open_prepared
from qwen_job.train.batches import StepSampler

prepared, model, output = sys.argv[1:4]
rows = open_prepared(__import__("pathlib").Path(prepared)).train
order = StepSampler(len(rows), 3, 2, 0, 1, 7).order()
dataset = [{"input_ids": rows[i].input_ids.tolist(), "labels": rows[i].labels.tolist()} for i in order]

def collate(items):
    size = max(len(item["input_ids"]) for item in items)
    pad = lambda name, value: torch.tensor([item[name] + [value] * (size - len(item[name])) for item in items])
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100)}

class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(dataset)

args = TrainingArguments(
    output_dir=output, use_cpu=True, seed=7, per_device_train_batch_size=3, gradient_accumulation_steps=2,
    num_train_epochs=1.0, learning_rate=5e-3, warmup_steps=0.1, weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
    lr_scheduler_type="cosine", logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
)
trainer = InOrder(
    model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa"),
    args=args, train_dataset=dataset, data_collator=collate,
)
trainer.train()
print(json.dumps([line for line in trainer.state.log_history if "loss" in line]))
"""


# What the loop may choose, and how far each figure may be from float32's: rounding alone in float32; in bfloat16, whose
# numbers have 8 bits, 2 ** -8 a number, less for the mean of many.
WAYS: dict[str, tuple[dict[str, str], dict[str, float]]] = {
    "float32": ({}, {"loss": 1e-5, "learning_rate": 1e-9, "grad_norm": 1e-3}),
    "bfloat16": (
        {"precision": "bf16", "fused_loss": "chunked"},
        {"loss": 1e-3, "learning_rate": 1e-9, "grad_norm": 2e-2},
    ),
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """Return the figures of every step, by way, and of the stock Trainer in float32."""
    home = tmp_path_factory.mktemp("reference")
    found = {}
    for way, (changes, _) in WAYS.items():
        train_yaml = tiny.write_run(home / way, 0 if way == "float32" else 2, **SETTINGS, **changes)
        code, output = tiny.run(train_yaml, 1)
        assert code == 0, output
        found[way] = tiny.metrics(train_yaml.parent, "step")
    prepared = next(path.parent for path in (home / "prepared").rglob("index.json"))
    model = next(path.parent for path in (home / "cache").rglob("config.json"))
    done = subprocess.run(
        [sys.executable, "-c", THEIRS, str(prepared), str(model), str(home / "theirs")],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found["stock"] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("way", WAYS)
def test_every_step_has_the_loss_rate_and_gradient_norm_of_the_stock_trainer(
    figures: dict[str, list[dict[str, float]]], way: str
) -> None:
    ours, theirs = figures[way], figures["stock"]
    assert len(ours) == len(theirs) > 5
    for name, tolerance in WAYS[way][1].items():
        expected = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(expected, rel=tolerance), name
