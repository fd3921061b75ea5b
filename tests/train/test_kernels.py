"""Our shorter formulas give what transformers' give, and the same slopes."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.train.kernels import rotate, stock_kernels, use_lean_kernels  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "layer_types": ["full_attention"] * 2,
}


def families() -> list[tuple[Any, Any]]:
    """Return configuration and model of each family."""
    import transformers as known

    pairs = [(known.Qwen2Config, known.Qwen2ForCausalLM), (known.Qwen3Config, known.Qwen3ForCausalLM)]
    return [*pairs, (known.Qwen3_5TextConfig, known.Qwen3_5ForCausalLM)]


@pytest.mark.parametrize("family", [0, 1, 2], ids=["qwen2", "qwen3", "qwen3_5"])
def test_lean_kernels_change_neither_loss_nor_gradients(family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    config, build = families()[family]
    home = sys.modules[build.__module__]
    stock = home.apply_rotary_pos_emb
    monkeypatch.setattr(home, "apply_rotary_pos_emb", stock)  # put back afterwards
    torch.manual_seed(0)
    model = build(config(**SIZES)).double()
    tokens = torch.randint(0, 64, (2, 20))
    results = []
    for lean in (False, True):
        if lean:
            use_lean_kernels(model)
            with stock_kernels():
                assert home.apply_rotary_pos_emb is stock
            assert home.apply_rotary_pos_emb is rotate
        model.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        results.append([loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_rotation_keeps_the_memory_layout() -> None:
    x = torch.randn(1, 6, 4, 8).transpose(1, 2).requires_grad_()
    cos, sin = torch.randn(2, 1, 6, 8)
    q, k = rotate(x, x, cos, sin)
    (q * k).sum().backward()
    assert q.stride() == x.stride() == k.stride() and x.grad is not None
