"""DataSpec reads train.yaml's data section, strictly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_job.data import DataFile, DataSpec
from qwen_job.errors import DataError
from qwen_job.job.model import DataFile as JobFile
from qwen_job.job.model import Train
from qwen_job.limits import MAX_WEIGHT, MIN_LENGTH


def test_reads_the_whole_section_and_writes_it_back() -> None:
    section = {
        "train": [{"path": "/a.json", "weight": 2}],
        "eval": [{"path": "/b.json", "weight": 1.0}],
        "eval_split": 0.0,
        "format": "sharegpt",
        "system_prompt": "",
        "max_length": 64,
        "long_samples": "split",
        "packing": False,
        "mask": "reference",
        "turn_order": "join",
        "ignore_keys": ["topic"],
        "cache_dir": "/cache",
        "num_workers": None,
    }
    spec = DataSpec.from_dict(section)
    assert spec.train == (DataFile(Path("/a.json"), 2.0),)
    assert spec.system_prompt == ""
    assert spec.to_dict() == section
    assert DataSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trian": []}, "data.trian: is not known"),
        ({"train": []}, "data.train: names no file"),
        ({"train": ["a", {"path": "b", "wieght": 1}]}, "data.train[1]: has ['wieght']"),
        ({"train": [{"path": "b", "weight": 0}]}, "data.weight: of b is 0.0"),
        ({"train": [{"path": "b", "weight": "1"}]}, "data.train[0]: has weight '1'"),
        ({"max_length": "512"}, "data.max_length: is '512'; write a int"),
        ({"max_length": True}, "data.max_length: is True"),
        ({"max_length": 8}, "data.max_length: is 8"),
        ({"mask": "all"}, "data.mask: is 'all'; write one of assistant, reference"),
        ({"eval_split": 1.0}, "data.eval_split: is 1.0"),
        ({"turn_order": "any"}, "data.turn_order: is 'any'; write one of strict, reference, join"),
        ({"ignore_keys": "topic"}, "data.ignore_keys: is 'topic'"),
        ({"packing": 1}, "data.packing: is 1"),
    ],
)
def test_refuses_what_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        DataSpec.from_dict({"train": ["a.json"]} | change)


def test_a_job_takes_the_lengths_and_weights_that_its_data_takes() -> None:
    assert Train.model_validate({"model_max_length": MIN_LENGTH}).model_max_length == MIN_LENGTH
    assert JobFile.model_validate({"path": "a", "weight": MAX_WEIGHT}).weight == MAX_WEIGHT
    with pytest.raises(ValidationError, match="greater than or equal to 32"):
        Train.model_validate({"model_max_length": MIN_LENGTH - 1})
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        JobFile.model_validate({"path": "a", "weight": MAX_WEIGHT + 1})
