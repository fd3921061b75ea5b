"""Every loss kernel gives the plain one's loss and gradients, and the head trains what it should."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.train import loss as losses  # noqa: E402
from qwen_job.train.attention import inputs_for, varlen  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from tests.train.test_batches import row  # noqa: E402


def gradients(kind: str, tokens: int) -> tuple[Any, Any, Any]:
    """Return loss and gradients of one kernel on fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (tokens,), generator=generator)
    loss = losses.fused_loss(kind)(hidden, weight, targets)
    (loss * 0.5).backward()
    return loss.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("kind", ["chunked", "torch"])
@pytest.mark.parametrize("tokens", [0, 1, 9, 40])
def test_fused_losses_agree_with_the_plain_one(kind: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ROWS", 16)
    for ours, plain in zip(gradients(kind, tokens), gradients("none", tokens), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("none", 2e-4), ("chunked", 2e-4)])
def test_the_loss_is_exact_in_16_bits(kind: str, limit: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(700, 32, generator=generator).bfloat16()
    weight = torch.randn(3000, 32, generator=generator).bfloat16()
    targets = torch.randint(0, 3000, (700,), generator=generator)
    expected = torch.nn.functional.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum")
    assert abs(losses.fused_loss(kind)(hidden, weight, targets) / expected - 1) < limit
    assert losses.exact_kind("torch", "bf16") == "chunked" and losses.exact_kind("torch", "fp32") == "torch"


def tiny_model(attention: str = "sdpa", **changes: Any) -> Any:
    """Return a random two-layer model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **changes
    )
    config._attn_implementation = attention
    return Qwen2ForCausalLM(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_documents_are_isolated(attention: str, tied: bool) -> None:
    model = tiny_model(attention, tie_word_embeddings=tied, num_key_value_heads=2)
    head = losses.LossHead(model, "none")

    def total(*rows: Any) -> float:
        batch = collate(list(enumerate(rows)), pad_id=0)
        inputs = inputs_for(batch, attention, torch.float32)
        return float(head.loss(model, inputs, batch["targets"], batch["chosen"]).detach())

    packed = row(5, 3, 4)
    single = [row(5), row(3), row(4)]
    for index, start in ((1, 5), (2, 8)):
        ids = packed.input_ids[start : start + len(single[index].input_ids)]
        single[index] = single[index]._replace(input_ids=ids, labels=ids)
    assert total(packed) == pytest.approx(sum(total(one) for one in single), rel=1e-5)
    assert total(packed) == pytest.approx(total(*single), rel=1e-5)


def test_without_targets_the_head_gives_logits() -> None:
    model = tiny_model(num_key_value_heads=4)
    expected = model(input_ids=torch.arange(4)[None]).logits
    losses.LossHead(model, "chunked")
    assert torch.equal(model(input_ids=torch.arange(4)[None]).logits, expected)


def test_varlen_without_boundaries_is_causal_attention() -> None:
    query = torch.randn(1, 4, 6, 8)
    key, value = torch.randn(2, 1, 2, 6, 8)
    ours, _ = varlen(torch.nn.Module(), query, key, value, None)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), is_causal=True
    )
    torch.testing.assert_close(ours, expected.transpose(1, 2))
