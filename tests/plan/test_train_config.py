"""train.yaml: every key, and readable by the training's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.render.configs import config_files
from tests.jobs import pinned_plan, plan

KEYS = {
    "version", "name", "output_dir", "seed", "world_size", "device", "precision", "attention", "fused_loss",
    "torch_compile", "gradient_checkpointing", "peak_tflops", "model", "data", "training", "stop", "guards", "plan",
}  # fmt: skip


def test_every_key_is_there(tmp_path: Path) -> None:
    config = plan(tmp_path).train_config
    assert set(config) >= KEYS and config["fused_loss"] != "auto" and config["attention"] != "auto"
    assert set(config["training"]) >= {"learning_rate", "warmup_ratio", "eval_steps", "report_to", "max_steps"}


def test_it_holds_the_decided_numbers_and_the_user_s_extras(tmp_path: Path) -> None:
    made = plan(tmp_path, "train: {run_name: first, learning_rate: 3e-6}\nslurm: {time: 1h}\nretry: {grace: 1m}\n")
    training = made.train_config["training"]
    assert (training["run_name"], training["learning_rate"]) == ("first", 3e-6)
    assert training["per_device_train_batch_size"] == made.batch.micro_batch_size
    assert made.train_config["stop"] == {"grace_seconds": 60}


def test_estimates_are_null_where_nothing_is_known(tmp_path: Path) -> None:
    assert set(pinned_plan(tmp_path).train_config["plan"].values()) == {None}


@pytest.mark.train
def test_the_training_reads_it(tmp_path: Path) -> None:
    from qwen_job.run.config import load_config

    for name, text in config_files(plan(tmp_path)).items():
        (tmp_path / name).write_text(text, "utf-8")
    assert load_config(tmp_path / "train.yaml")[0].name == "tiny"
