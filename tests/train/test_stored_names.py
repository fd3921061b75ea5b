"""A model of any family is written with the names, shapes and values of the files that it was read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.facts.families import FAMILIES
from qwen_job.facts.weights import LEFT_OUT, expected_shapes
from tests.support.tiny_models import write_folder

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.facts.model_files import read_text_config  # noqa: E402
from qwen_job.models.loading import load_native  # noqa: E402
from qwen_job.train.export import _write_weights  # noqa: E402


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in found.items() if not name.startswith(tuple(LEFT_OUT))}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_tensor_is_written_as_it_was_read(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "read", kind)
    model, _ = load_native(folder, torch.float32, "sdpa")
    _write_weights(model, model.state_dict(), tmp_path / "written")
    before, after = tensors(folder), tensors(tmp_path / "written")
    assert before.keys() == after.keys() and len(after) > 20
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_experts_that_were_read_together_are_written_one_by_one_where_the_hub_has_them_so(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = write_folder(tmp_path / "read", "qwen3_moe")
    expected = tensors(folder)
    model, _ = load_native(folder, torch.float32, "sdpa")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in tensors(folder)
    model, _ = load_native(folder, torch.float32, "sdpa")
    _write_weights(model, model.state_dict(), tmp_path / "written")
    written = tensors(tmp_path / "written")
    assert {name: tuple(value.shape) for name, value in written.items()} == expected_shapes(read_text_config(folder))
    assert all(torch.equal(expected[name], written[name]) for name in expected)
