"""The facts about TrainingArguments against transformers' own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from qwen_job.job.model import Train
from qwen_job.resources import resource

pytestmark = pytest.mark.train
FACTS = yaml.safe_load(resource("configs", "train", "training_arguments.yaml").read_text("utf-8"))
# Names of older versions and of the reference's finetune.py, and our own; transformers 5 has none of them.
NOT_THEIRS = {
    "do_train", "evaluation_strategy", "lazy_preprocess", "no_cuda", "overwrite_output_dir", "q_lora",
    "save_safetensors", "use_lora",
}  # fmt: skip
OURS = {
    "attention", "early_stopping_patience", "fused_loss", "global_batch_size", "hang_seconds", "loss_spike_factor",
    "model_max_length", "on_nan",
}  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    from transformers import TrainingArguments

    return {field.name: field.type for field in dataclasses.fields(TrainingArguments)}


def test_every_accepted_name_is_theirs_and_of_their_type(theirs: dict[str, Any]) -> None:
    for name, kind in FACTS["accepted"].items():
        assert name in theirs and kind in str(theirs[name]), name


def test_every_owned_name_is_theirs_or_known_from_before(theirs: dict[str, Any]) -> None:
    assert set(FACTS["owned"]) - set(theirs) <= NOT_THEIRS


def test_every_typed_field_is_theirs_or_ours(theirs: dict[str, Any]) -> None:
    assert set(Train.model_fields) - set(theirs) <= OURS | {"warmup_ratio"}


def test_the_three_tables_and_the_types_do_not_overlap() -> None:
    tables = [*FACTS["accepted"], *FACTS["renamed"], *FACTS["owned"], *Train.model_fields]
    assert len(tables) == len(set(tables))


def test_every_new_name_is_one_of_ours() -> None:
    assert all(new.partition(":")[0] in Train.model_fields for new in FACTS["renamed"].values())
