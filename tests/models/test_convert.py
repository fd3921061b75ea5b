"""Qwen-1 <-> Qwen2ForCausalLM keeps every bit, and says what it cannot keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault, ModelError, UsageError
from qwen_job.models.completeness import check_folder
from qwen_job.models.convert import convert_folder, export_qwen1
from qwen_job.models.qwen1 import qwen1_config, qwen2_config

from .qwen1_checkpoint import CONFIG, LAYERS


@pytest.fixture(scope="module")
def converted(qwen1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    lines: list[str] = []
    convert_folder(qwen1, target, lines.append)
    (target.parent / "said").write_text("\n".join(lines))
    return target


def test_a_conversion_is_a_complete_native_folder(converted: Path) -> None:
    config = check_folder(converted)
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["eos_token_id"], config["pad_token_id"]) == (151645, 151643)
    assert not list(converted.glob("*.py"))
    generation = json.loads((converted / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [151645, 151644, 151643]
    assert generation["top_p"] == 0.8
    assert "max_new_tokens" not in generation
    assert "generation_config.json: max_new_tokens: 77 is left out" in (converted.parent / "said").read_text()


def test_there_and_back_gives_the_same_files(converted: Path, qwen1: Path, tmp_path: Path) -> None:
    assert export_qwen1(converted, tmp_path / "back", original=qwen1)
    for name in [*(path.name for path in qwen1.glob("*.safetensors")), "qwen.tiktoken", "modeling_qwen.py"]:
        assert (tmp_path / "back" / name).read_bytes() == (qwen1 / name).read_bytes(), name
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    assert index == json.loads((qwen1 / "model.safetensors.index.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == {**CONFIG, "torch_dtype": "float32"}


def test_export_without_the_original_makes_an_equal_config(converted: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(converted, model)
    native = model / "generation_config.json"
    native.write_text(json.dumps({**json.loads(native.read_text()), "do_sample": True, "repetition_penalty": 1.1}))
    assert not export_qwen1(model, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: config[key] for key in CONFIG if key != "auto_map"} == {
        key: value for key, value in CONFIG.items() if key != "auto_map"
    }
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert (generation["chat_format"], generation["repetition_penalty"], generation["top_p"]) == ("chatml", 1.1, 0.8)
    assert generation["max_new_tokens"] == 512


def test_nothing_is_overwritten(qwen1: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists"):
        convert_folder(qwen1, tmp_path)
    with pytest.raises(EnvironmentFault, match="cannot be opened to lock: File name too long"):
        convert_folder(qwen1, tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("key", "value"),
    [("no_bias", False), ("rotary_pct", 0.5), ("tie_word_embeddings", True), ("kv_channels", 5), ("hidden_size", "x")],
)
def test_a_config_that_cannot_be_expressed_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        qwen2_config({**CONFIG, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_key_value_heads", 1),
        ("tie_word_embeddings", True),
        ("hidden_act", "gelu"),
        ("head_dim", 32),
        ("rope_theta", 10000.5),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
    ],
)
def test_what_the_old_layout_cannot_hold_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        qwen1_config({**qwen2_config(CONFIG), key: value})


def test_what_says_nothing_fits_the_old_layout() -> None:
    neutral = {"head_dim": None, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert qwen1_config({**qwen2_config(CONFIG), **neutral}) == qwen1_config(qwen2_config(CONFIG))


def _copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_a_wrong_size_in_config_is_named_and_leaves_nothing(qwen1: Path, tmp_path: Path) -> None:
    broken = _copy_of(qwen1, tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({**CONFIG, "intermediate_size": 64}))
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight: config\.json asks for \(32, 16\)"):
        convert_folder(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_missing_shard_is_named(qwen1: Path, tmp_path: Path) -> None:
    broken = _copy_of(qwen1, tmp_path / "broken")
    (broken / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: does not exist"):
        convert_folder(broken, tmp_path / "out")


def test_git_lfs_is_named_as_the_cause(qwen1: Path, tmp_path: Path) -> None:
    broken = _copy_of(qwen1, tmp_path / "broken")
    (broken / "qwen.tiktoken").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:b2b1\n")
    with pytest.raises(ModelError, match="git-lfs"):
        convert_folder(broken, tmp_path / "out")
    shard = broken / "model-00001-of-00002.safetensors"
    shard.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="git-lfs"):
        convert_folder(broken, tmp_path / "out")


def test_layers_are_all_there(converted: Path) -> None:
    names = json.loads((converted / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(names) == 3 + 12 * LAYERS


def test_a_conversion_goes_ahead_over_what_a_killed_one_left(qwen1: Path, converted: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.part"
    left.mkdir()
    (left / "model-00001-of-00002.safetensors").write_bytes(b"half")
    (left / "stray").touch()
    convert_folder(qwen1, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        path.name: path.read_bytes() for path in converted.iterdir()
    }
