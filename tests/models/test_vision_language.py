"""A vision-language folder: its text model is checked and used, its other parts are left out and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import ModelError
from qwen_job.facts.weights import expected_shapes
from qwen_job.models.completeness import check_folder, left_out
from qwen_job.models.generation import exported, stops_of
from qwen_job.models.tensors import NewTensor, read_folder, write_tensors
from tests.support.tiny_models import write_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("vl") / "whole", "qwen3_5")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def rewrite(folder: Path, drop: str = "", add: tuple[str, ...] = ()) -> None:
    tensors = [t for t in read_folder(folder).values() if not drop or drop not in t.name]
    stored = [NewTensor(t.name, t.dtype, t.shape, [b"".join(t.read())]) for t in tensors]
    write_tensors(folder / "model.safetensors", [*stored, *(NewTensor(name, "F32", (1,), [bytes(4)]) for name in add)])


def test_the_text_model_is_described_and_the_rest_is_named(whole: Path) -> None:
    config = check_folder(whole)
    assert config["model_type"] == "qwen3_5_text" and "lm_head.weight" in expected_shapes(config)
    vision, prediction = left_out(whole)
    assert "vision tower (2 weights)" in vision and "multi-token prediction (1 weights)" in prediction


def test_a_folder_of_the_text_model_alone_leaves_nothing_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "text", "qwen3_5_text")
    assert check_folder(folder)["model_type"] == "qwen3_5_text" and left_out(folder) == []


@pytest.mark.parametrize("name", ["layers.2.linear_attn.A_log", "layers.3.self_attn.q_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_missing_is_named(folder: Path, name: str) -> None:
    rewrite(folder, drop=name)
    with pytest.raises(ModelError, match=rf"{name} is in no safetensors file"):
        check_folder(folder)


@pytest.mark.parametrize(
    "name", ["model.language_model.layers.4.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"]
)
def test_a_weight_that_the_config_does_not_know_is_named(folder: Path, name: str) -> None:
    rewrite(folder, add=(name,))
    with pytest.raises(ModelError, match=f"{name} belongs to another model"):
        check_folder(folder)


def test_a_shape_that_differs_is_named(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, text_config={**text, "linear_value_head_dim": 16})
    with pytest.raises(ModelError, match=r"linear_attn\.\S+ is \(\d+.* where config.json asks for"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "qwen4_exp"}, "Qwen3.8-Flash-Next"),
        ({"architectures": ["Qwen3_5Model"]}, "architectures: must hold 'Qwen3_5ForCausalLM' or 'Qwen3_5ForCond"),
        ({"text_config": None}, "text_config: is missing"),
        ({"text_config": {"model_type": "qwen3_5_text"}}, "hidden_size"),
        ({"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_in_one_line(folder: Path, values: dict[str, Any], named: str) -> None:
    change(folder, **values)
    with pytest.raises(ModelError, match=named) as refused:
        check_folder(folder)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_text_part_that_is_quantized_is_refused(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, text_config={**text, "quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(ModelError, match="is quantized"):
        check_folder(folder)


def test_a_vision_tower_beside_a_dense_model_without_one_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "dense", "qwen3")
    rewrite(folder, add=("model.visual.merger.norm.weight",))
    with pytest.raises(ModelError, match="belongs to another model"):
        check_folder(folder)


def test_answers_end_where_tokenizer_and_generation_config_say_not_the_text_config(folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, text_config={**text, "eos_token_id": text["bos_token_id"]})
    start, end = text["bos_token_id"], text["eos_token_id"]
    assert stops_of(folder)[0] == end and set(stops_of(folder)) >= {start, end}
    assert exported(folder).values["eos_token_id"] == stops_of(folder)


def test_a_stop_beyond_the_text_models_vocabulary_is_reported(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [286, 5000]}))
    assert any("5000 is left out" in note for note in exported(folder).notes)
