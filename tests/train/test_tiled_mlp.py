"""Tiled networks and offloaded checkpoints in one process: what they compute, how often, and what they keep.

That they equal one process without either at every ZeRO stage is in test_sequence_parallel.py. Two seconds, and the
imports.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import JobError
from tests.support.tiny_models import write_folder

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.models.loading import load_native  # noqa: E402
from qwen_job.train.activation_offloading import HostMemory, checkpoint_layers  # noqa: E402
from qwen_job.train.tiled_mlp import tile_mlps  # noqa: E402

TOKENS, TILE = 61, 13  # five tiles a row, the last one shorter


def model_of(folder: Path, kind: str = "qwen3", dtype: Any = torch.float32) -> Any:
    path = folder / kind
    return load_native(path if path.exists() else write_folder(path, kind), dtype, "sdpa")[0].train()


def step(model: Any) -> tuple[float, list[Any]]:
    """Return the loss of two rows, and all gradients."""
    tokens = torch.arange(2 * TOKENS).view(2, TOKENS) % 300
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.item(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_5_text"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_tiles_give_the_same_gradients(tmp_path: Path, kind: str, checkpointing: bool) -> None:
    models = [model_of(tmp_path, kind) for _ in range(2)]
    tile_mlps(models[1], tokens=TILE)
    if checkpointing:
        checkpoint_layers(models[1], offload=False)
    (loss, grads), (tiled_loss, tiled_grads) = map(step, models)
    assert tiled_loss == pytest.approx(loss, rel=1e-6)
    for grad, tiled in zip(grads, tiled_grads, strict=True):
        assert float((grad - tiled).norm() / grad.norm()) < 2e-6


def test_tiles_in_16_bits_are_added_up_in_float32(tmp_path: Path) -> None:
    exact, plain, tiled = (model_of(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16))
    tile_mlps(tiled, tokens=2)
    true, whole, parts = (step(model)[1] for model in (exact, plain, tiled))
    for index, (name, _) in enumerate(exact.named_parameters()):
        if "mlp" in name:
            off = [float((grads[index].float() - true[index]).norm()) for grads in (whole, parts)]
            assert off[1] < 1.2 * off[0]


def test_no_pass_through_a_network_is_made_in_vain(tmp_path: Path) -> None:
    calls, model = [], model_of(tmp_path)
    checkpoint_layers(model, offload=False)
    tile_mlps(model, tokens=TILE)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: calls.append(1))
    step(model)
    assert len(calls) == 2 * -(-2 * TOKENS // TILE)  # forward, and again in backward: the checkpoint adds none


def test_experts_are_not_tiled(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="true: qwen3_moe has experts"):
        tile_mlps(model_of(tmp_path, "qwen3_moe"))


class Elsewhere(HostMemory):
    """Memory of another device, as it were: tensors are copied, and the originals are not held."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[Any] = []
        self.originals: list[Any] = []
        self.loaded = 0

    def store(self, tensor: Any) -> Any:
        """Keep a copy."""
        self.shapes.append(tuple(tensor.shape))
        self.originals.append(weakref.ref(tensor.untyped_storage()))
        return (tensor.clone(),)

    def load(self, kept: Any) -> Any:
        """Return the copy."""
        self.loaded += 1
        return kept[0]


def test_offloading_moves_the_input_of_every_layer_and_nothing_else(tmp_path: Path) -> None:
    plain, offloaded = (model_of(tmp_path) for _ in range(2))
    checkpoint_layers(plain, offload=False)
    checkpoint_layers(offloaded, offload=True, memory=(memory := Elsewhere()))
    expected = step(plain)
    tokens = torch.arange(2 * TOKENS).view(2, TOKENS) % 300
    loss = offloaded(input_ids=tokens, labels=tokens, use_cache=False).loss
    assert memory.shapes == [(2, TOKENS, 32)] * 2  # of two layers
    assert all(original() is None for original in memory.originals)
    loss.backward()
    assert memory.loaded == 2 and loss.item() == expected[0]
    assert all(map(torch.equal, (one.grad for one in offloaded.parameters()), expected[1]))


def test_on_a_cpu_offloading_keeps_the_tensor_itself() -> None:
    memory, tensor = HostMemory(), torch.ones(3)
    assert memory.load(memory.store(tensor)) is tensor
