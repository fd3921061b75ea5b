"""Rows beyond a model's own length, and YaRN for them: what the plan says and what the run gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.plan.train_config import train_config
from qwen_job.run.config import parse_config, to_values
from tests.jobs import plan, problems

_BIG = ("model.name=Qwen/Qwen3-4B", "cluster.gpus_per_node=8", "cluster.gpu=H100")


def _warnings(tmp_path: Path, *sets: str) -> str:
    return "\n".join(plan(tmp_path, "", *_BIG, *sets).warnings)


def test_rows_beyond_the_model_name_the_factor_that_reaches_them(tmp_path: Path) -> None:
    said = _warnings(tmp_path, "train.model_max_length=60000")
    assert "more than the 40960 that Qwen/Qwen3-4B was trained for" in said
    assert "model.rope_scaling: 2 (YaRN" in said


_CARD = "{rope_type: yarn, factor: 2.0, original_max_position_embeddings: 32768}"


@pytest.mark.parametrize("written", ["2", "{factor: 2.0}", "{type: yarn, factor: 2.0}", _CARD])
def test_every_form_reaches_the_run(tmp_path: Path, written: str) -> None:
    made = plan(tmp_path, "", *_BIG, "train.model_max_length=60000", f"model.rope_scaling={written}")
    assert not [line for line in made.warnings if "rope_scaling" in line or "model_max_length" in line]
    scaling = parse_config(to_values(train_config(made)), "train.yaml").model.rope_scaling
    assert scaling is not None and scaling.factor == 2.0
    assert scaling.original_max_position_embeddings in (None, 32768)


def test_too_small_a_factor_and_a_needless_one_are_warned_of(tmp_path: Path) -> None:
    said = _warnings(tmp_path, "train.model_max_length=100000", "model.rope_scaling=2")
    assert "more than the 65536 of model.rope_scaling" in said and "model.rope_scaling: 4" in said
    assert "YaRN changes short texts" in _warnings(tmp_path, "model.rope_scaling=2")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("model.rope_scaling={type: dynamic, factor: 2}",), ("model.rope_scaling.rope_type", "yarn")),
        (("model.rope_scaling=1",), ("model.rope_scaling.factor", "1")),
        (("model.rope_scaling={}",), ("model.rope_scaling.factor", "is required")),
        (
            ("model.name=Qwen/Qwen3.5-4B", "model.rope_scaling=2", "train.export=original"),
            ("model.rope_scaling: is written into the text model's config", "write text"),
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, sets: tuple[str, ...], words: tuple[str, ...]) -> None:
    (found,) = problems(tmp_path, "", *_BIG, *sets)
    assert all(word in found for word in words), found
