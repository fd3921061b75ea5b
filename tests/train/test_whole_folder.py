"""``train.export``: the text model alone, or the vision-language folder with its text weights replaced.

One run of two ranks at ZeRO-3, half a minute; the rest works on folders.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_job.errors import ModelError
from qwen_job.models.loading import load_native
from qwen_job.models.tensors import NewTensor, Tensor, read_folder, write_tensors
from qwen_job.run.config import parse_config
from qwen_job.train.export import _write_folder, _write_weights, probe, rehearse
from qwen_job.train.whole_folder import write_whole_folder
from tests.support.tiny_models import write_folder
from tests.train import tiny

pytestmark = pytest.mark.train
TOKENS = torch.arange(3, 60).unsqueeze(0)


def content(tensor: Tensor) -> bytes:
    return b"".join(tensor.read())


def is_text(name: str) -> bool:
    return not name.startswith(("model.visual.", "mtp."))


def config_of(folder: Path, **changes: Any) -> Any:
    train, _ = tiny.settings(folder, **changes)
    return parse_config(train, "train.yaml")


def trained_model(source: Path) -> Any:
    """Return the text model of a folder with every weight changed."""
    model, _ = load_native(source, "auto", "sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25).add_(0.01)
    return model.eval()


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("whole") / "model", request.param, initializer_range=0.1)
    (folder / "preprocessor_config.json").write_text('{"size": 1}\n')
    return folder


@pytest.mark.parametrize("export", ["text", "original"])
def test_both_forms_answer_as_the_trained_model(source: Path, tmp_path: Path, export: str) -> None:
    model = trained_model(source)
    expected = probe(model, TOKENS)
    written = tmp_path / "written"
    written.mkdir()
    _write_folder(model, model.state_dict(), source, written, config_of(tmp_path, export=export))
    again, report = load_native(written, "auto", "sdpa")
    assert not any(report.values())
    assert torch.equal(probe(again.eval(), TOKENS), expected)
    names, kind = read_folder(written), json.loads((written / "config.json").read_text())["model_type"]
    assert kind.endswith("_text") == (export == "text")
    assert any(name.startswith("model.visual.") for name in names) == (export == "original")
    assert any(name.startswith("model.language_model.") for name in names) == (export == "original")
    assert (written / "preprocessor_config.json").exists() == (export == "original")


def test_all_but_the_text_weights_stays_byte_for_byte(source: Path, tmp_path: Path) -> None:
    model = trained_model(source)
    _write_weights(model, model.state_dict(), tmp_path / "trained")
    write_whole_folder(source, tmp_path / "trained", tmp_path / "written", "auto", None)
    old, new = read_folder(source), read_folder(tmp_path / "written")
    assert list(old) == list(new)
    same = {name for name in old if content(old[name]) == content(new[name])}
    assert same == {name for name in old if not is_text(name)}
    files = {path.name for path in source.iterdir()} - {"model.safetensors", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "written").iterdir()} >= files
    for name in files:
        assert (source / name).read_bytes() == (tmp_path / "written" / name).read_bytes(), name


def test_weights_keep_the_types_of_the_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", "qwen3_5")
    model = trained_model(source)
    model.to(torch.bfloat16)
    _write_weights(model, model.state_dict(), tmp_path / "trained")
    write_whole_folder(source, tmp_path / "trained", tmp_path / "written", "auto", None)
    new, rounded = read_folder(tmp_path / "written"), read_folder(tmp_path / "trained")
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert new[name].dtype == "F32" and rounded[name].dtype == "BF16"
    values = torch.frombuffer(bytearray(content(new[name])), dtype=torch.float32)
    assert torch.equal(values, torch.frombuffer(bytearray(content(rounded[name])), dtype=torch.bfloat16).float())


def test_weights_of_another_model_are_refused(source: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(source, tmp_path / "other"))
    kept = [one for one in read_folder(other).values() if is_text(one.name) and "layers.3" not in one.name]
    tensors = [NewTensor(one.name, one.dtype, one.shape, [content(one)]) for one in kept]
    write_tensors(other / "model.safetensors", tensors)
    with pytest.raises(ModelError, match=r"layers\.3\..*in the folder or trained, not both; write train.export: text"):
        write_whole_folder(source, other, tmp_path / "written", "auto", None)


def test_a_text_model_has_no_original_and_says_so_before_the_first_step(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "text", "qwen3_5_text")
    model, _ = load_native(source, "auto", "sdpa")
    with pytest.raises(ModelError, match=r"train\.export: original needs a vision-language folder.*write text"):
        rehearse(model, source, config_of(tmp_path, export="original"))


@pytest.mark.slow
def test_a_run_at_zero_3_writes_the_original_folder(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "model", "qwen3_5", vocab_size=512)
    changes = {"model__name": str(source), "model__source": "local", "export": "original", "data__max_length": 64}
    path = tiny.write_run(tmp_path / "run", stage=3, **changes, training__max_steps=2)
    code, output = tiny.run(path)
    assert code == 0, output
    assert "the vision tower (2 weights) is not trained, and stays as it was in model/ (train.export)" in output
    old, new = read_folder(source), read_folder(tmp_path / "run" / "model")
    assert old.keys() == new.keys()
    changed = {name for name in old if content(old[name]) != content(new[name])}
    assert {name for name in changed if not is_text(name)} == set()
    assert {name for name in old if is_text(name) and len(old[name].shape) > 1} <= changed
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "--language-model-only" in card and "vLLM 0.17 or newer" in card and "transformers 5.2.0" in card
    from qwen_job.infer.chat import Frame, open_chat
    from qwen_job.infer.source import Sampling

    chat = open_chat(tmp_path / "run", Frame(), Sampling(max_new_tokens=3))
    assert sum(1 for _ in chat.take("Count 1") or ()) >= 0
