"""The model and data sections of train.yaml: validated once, by field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_job.errors import DataError, ModelError
from qwen_job.job.model import DataFile as JobFile
from qwen_job.job.model import Train
from qwen_job.limits import MAX_WEIGHT, MIN_LENGTH
from qwen_job.run.sections import DataFile, DataSpec, ModelSpec, plain


def test_reads_the_whole_section_and_writes_it_back() -> None:
    section = {
        "train": [{"path": "/a.json", "weight": 2, "source": None, "revision": None}],
        "eval": [{"path": ".", "weight": 1.0, "source": "hf:owner/name:test", "revision": "v1"}],
        "eval_split": 0.0,
        "format": "sharegpt",
        "template": "/chat.jinja",
        "system_prompt": "",
        "learn": "last",
        "thinking": "strip",
        "empty_think": "mask",
        "several_thoughts": "join",
        "max_length": 64,
        "long_samples": "split",
        "packing": False,
        "mask": "reference",
        "turn_order": "join",
        "ignore_keys": ["topic"],
        "cache_dir": "/cache",
        "num_workers": None,
    }
    spec = DataSpec.read(section)
    assert spec.train == (DataFile(path=Path("/a.json"), weight=2.0),)
    assert spec.system_prompt == ""
    assert plain(spec) == section
    assert DataSpec.read(plain(spec)) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": []}, "data.trian: unknown key"),
        ({"train": []}, "data.train: is empty"),
        ({"train": ["a", {"path": "b", "wieght": 1}]}, "data.train[1].wieght: unknown key"),
        ({"train": [{"path": "b", "weight": 0}]}, "data.train[0].weight: "),
        ({"train": [{"path": "b", "weight": "heavy"}]}, "data.train[0].weight: "),
        ({"max_length": True}, "data.max_length: "),
        ({"max_length": 8}, "data.max_length: "),
        ({"mask": "all"}, "data.mask: Input should be 'assistant' or 'reference'"),
        ({"eval_split": 1.0}, "data.eval_split: "),
        ({"turn_order": "any"}, "data.turn_order: "),
        ({"ignore_keys": "topic"}, "data.ignore_keys: "),
        ({"packing": 7}, "data.packing: "),
    ],
)
def test_a_wrong_value_of_the_data_is_named_by_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DataSpec.read({"train": ["a.json"]} | change)


MODEL = {"name": "qwen2-tiny", "source": "random", "revision": None, "cache_dir": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "model.nmae: unknown key"),
        ({"source": "hub"}, "model.source: .*'modelscope'"),
        ({"source": "modelscope"}, "model.name: .*owner/name"),
        ({"name": None}, "model.name: "),
        ({"name": ""}, "model.name: is empty"),
        ({"cache_dir": 3}, "model.cache_dir: "),
    ],
)
def test_a_wrong_value_of_the_model_is_named_by_its_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.read({**MODEL, **change})


def test_null_leaves_a_data_field_to_its_default() -> None:
    assert DataSpec.read({"train": ["a"], "eval": None, "max_length": None}) == DataSpec.read({"train": ["a"]})


def test_a_path_that_is_not_utf8_survives() -> None:
    spec = DataSpec.read({"train": ["a\udcff.json"]})
    assert DataSpec.read(plain(spec)) == spec


def test_a_job_takes_the_lengths_and_weights_that_its_data_takes() -> None:
    assert Train.model_validate({"model_max_length": MIN_LENGTH}).model_max_length == MIN_LENGTH
    assert JobFile.model_validate({"path": "a", "weight": MAX_WEIGHT}).weight == MAX_WEIGHT
    with pytest.raises(ValidationError, match="greater than or equal to 32"):
        Train.model_validate({"model_max_length": MIN_LENGTH - 1})
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        JobFile.model_validate({"path": "a", "weight": MAX_WEIGHT + 1})
