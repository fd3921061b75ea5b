"""Every loss kernel gives the plain one's loss and gradients, and the head trains what it should."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.errors import EnvironmentFault, ModelError  # noqa: E402
from qwen_job.train import attention as kernels  # noqa: E402
from qwen_job.train import loss as losses  # noqa: E402
from qwen_job.train.attention import check_kernel, inputs_for, varlen, window_of  # noqa: E402
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


def test_gradients_in_16_bits_are_scaled_in_float32_and_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ROWS", 16)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 8, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=generator)
    share = 1 / 28_123  # of which bfloat16 has lost 0.3%

    def slopes(factor: float) -> tuple[Any, ...]:
        return torch.autograd.grad(losses.chunked(hidden, weight, targets) * factor, (hidden, weight))

    whole, scaled = slopes(1.0), slopes(share)
    assert torch.equal(scaled[0], (whole[0].float() * share).bfloat16())
    # The weight's gradient is a float32 sum until then: it is rounded after the product alone.
    assert (scaled[1].float() / (whole[1].float() * share) - 1).abs().max() < 2**-7


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
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    qwen3 = changes.pop("qwen3", False)
    config = (Qwen3Config if qwen3 else Qwen2Config)(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **changes
    )
    config._attn_implementation = attention
    return (Qwen3ForCausalLM if qwen3 else Qwen2ForCausalLM)(config)


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


def flash(q: Any, k: Any, v: Any, ends: Any, *_: Any, scale: float, window_size: tuple[int, int], **__: Any) -> Any:
    """Compute what torch's varlen kernel does on a GPU: documents of [T, heads, D], a window to the left."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
    parts = []
    for start, end in itertools.pairwise(ends.tolist()):
        one, two, three = (part[start:end].transpose(0, 1) for part in (q, k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (distance < 0) | ((distance > window_size[0]) if window_size[0] >= 0 else distance < 0)
        scores = (one @ two.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        parts.append((scores.softmax(-1) @ three).transpose(0, 1))
    return torch.cat(parts)


ROPE = {"rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
FIELDS: dict[str, dict[str, Any]] = {
    "window in the last layer": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "window in every layer": {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0},
    "window by layer_types": {
        "use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"],
    },
    "window of one token": {"use_sliding_window": True, "sliding_window": 1, "max_window_layers": 0},
    "window longer than a row": {"use_sliding_window": True, "sliding_window": 99, "max_window_layers": 0},
    "yarn": {"rope_parameters": {**ROPE, "rope_type": "yarn"}},
    "linear": {"rope_parameters": {**ROPE, "rope_type": "linear"}},
    "llama3": {"rope_parameters": {**ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    "qwen3": {"qwen3": True, "head_dim": 6, "attention_bias": True},
    "qwen3 with a window": {
        "qwen3": True, "head_dim": 6, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
    },
    "tied, gelu, a large eps": {"tie_word_embeddings": True, "hidden_act": "gelu", "rms_norm_eps": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager", "varlen"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_packed_loss_is_that_of_stock_transformers_whatever_the_config_says(
    attention: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = frozenset({"scale", "window_size", "enable_gqa"})
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(flash, takes))
    stock = tiny_model("eager", num_key_value_heads=2, **fields)
    model = tiny_model(kernels.implementation(attention), num_key_value_heads=2, **fields)
    # Small random weights look at everything alike: a window would not show.
    for one in (stock, model):
        torch.manual_seed(5)
        for parameter in one.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    packed = row(11, 6, 9)
    expected, start, singles = 0.0, 0, []
    for length in (11, 6, 9):
        ids = torch.as_tensor(packed.input_ids[start : start + length], dtype=torch.int64)[None]
        expected += float(stock(input_ids=ids, labels=ids).loss.detach()) * (length - 1)
        singles.append(row(length)._replace(input_ids=ids[0].numpy(), labels=ids[0].numpy()))
        start += length
    head = losses.LossHead(model, "none")
    for rows in ([packed], singles):
        batch = collate(list(enumerate(rows)), pad_id=0)
        inputs = inputs_for(batch, attention, torch.float32, window_of(model.config))
        total = head.loss(model, inputs, batch["targets"], batch["chosen"])
        assert float(total.detach()) == pytest.approx(expected, rel=2e-6)


class NanBehind(torch.autograd.Function):
    """The identity, with a gradient that is not finite."""

    @staticmethod
    def forward(_ctx: Any, out: Any) -> Any:
        return out.clone()

    @staticmethod
    def backward(_ctx: Any, *slopes: Any) -> Any:
        return slopes[0] * float("nan")


class MemoryEfficient:
    """The kernel of GPUs below 8.0 on a CPU, by its own arguments; counts the pairs of tokens that it looks at."""

    def __init__(self) -> None:
        self.pairs = 0

    def __call__(self, *given: Any, scale: float, window_size: int | None = None) -> tuple[Any, ...]:
        """Return [1, T, heads, D], as the first of several results."""
        query, key, value, bias, ends, _, longest, _, dropout, mask_type, keeps_sums = given
        assert query.shape == key.shape == value.shape and query.shape[0] == 1
        assert bias is None and dropout == 0.0 and mask_type == 1 and keeps_sums and ends.dtype == torch.int32
        lengths = ends.diff()
        assert ends[-1] == query.shape[1] and longest >= lengths.max() and longest % 128 == 0
        self.pairs += int((lengths.long() ** 2).sum())
        left = -1 if window_size is None else window_size - 1
        return (flash(query[0], key[0], value[0], ends, scale=scale, window_size=(left, 0))[None],)


@pytest.mark.parametrize(
    "fields", [{}, FIELDS["window in the last layer"], FIELDS["qwen3"]], ids=["plain", "near", "qwen3"]
)
def test_an_older_gpu_attends_within_documents_and_for_their_lengths_alone(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = MemoryEfficient()
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", kernel)
    takes = frozenset({"scale", "enable_gqa", "window_size"})
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(kernels.memory_efficient, takes))
    masked = tiny_model("sdpa", num_key_value_heads=2, **fields)
    ours = tiny_model(kernels.implementation("varlen"), num_key_value_heads=2, **fields)
    batch = collate(list(enumerate([row(11, 6, 9), row(20, 4)])), pad_id=0)
    slopes = []
    for model, kind in ((masked, "sdpa"), (ours, "varlen")):
        inputs = inputs_for(batch, kind, torch.float32, window_of(model.config))
        total = losses.LossHead(model, "none").loss(model, inputs, batch["targets"], batch["chosen"])
        slopes.append([total.detach(), *torch.autograd.grad(total, list(model.parameters()))])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=2e-5, atol=2e-6)
    # Of two layers; the pads of the second row are part of its last document.
    assert kernel.pairs == 2 * (11**2 + 6**2 + 9**2 + 20**2 + 6**2)
    assert kernel.pairs < 2 * 2 * 26**2 / 1.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((lambda out: out), None),
        ((lambda out: out.roll(1, 1)), "it is off by 1"),
        ((lambda out: out * float("nan")), "it is off by nan"),
        ((lambda out: NanBehind.apply(out)), "it is off by nan"),
        (None, "cannot be used on this GPU: Could not run 'aten::_efficient_attention_forward'"),
    ],
)
def test_an_older_gpu_s_kernel_is_tried_before_it_is_used(
    change: Any, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes = frozenset({"scale", "enable_gqa"})
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(kernels.memory_efficient, takes))
    kernel = MemoryEfficient()
    if change is not None:
        changed = lambda *given, **options: (change(kernel(*given, **options)[0]),)  # noqa: E731
        monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", changed)
    if message is None:
        for window in (None, 1, 40):
            kernels.try_kernel(torch.device("cpu"), torch.bfloat16, window)
        return
    with pytest.raises(EnvironmentFault, match=r"write train\.attention: sdpa") as raised:
        kernels.try_kernel(torch.device("cpu"), torch.bfloat16)
    assert message in str(raised.value)


def test_the_call_for_older_gpus_is_one_that_torch_knows_and_differentiates() -> None:
    options = {"device": "meta", "dtype": torch.float16, "requires_grad": True}
    query, key, value = (torch.empty(20, heads, 8, **options) for heads in (4, 2, 2))
    ends = torch.zeros(4, dtype=torch.int32, device="meta")
    out = kernels.memory_efficient(
        query, key, value, ends, ends, 128, 128, scale=0.5, enable_gqa=True, window_size=(3, 0)
    )
    assert out.shape == query.shape and out.dtype == query.dtype
    assert "EfficientAttention" in out.grad_fn.next_functions[0][0].name()


def test_an_older_gpu_gets_the_memory_efficient_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, efficient in (((7, 0), True), ((7, 5), True), ((8, 0), False), ((9, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        monkeypatch.setattr(kernels, "_kernels", [])
        kernel = kernels.varlen_kernel()
        assert (kernel.call is kernels.memory_efficient) is efficient
        assert {"scale", "window_size", "enable_gqa"} <= kernel.takes


def test_the_kernel_is_told_the_longest_document_of_the_batch() -> None:
    batch = collate(list(enumerate([row(150, 40), row(130, 60)])), pad_id=0)
    inputs = inputs_for(batch, "varlen", torch.float32)
    assert inputs["max_length_q"] == 256
    assert inputs["cu_seq_lens_q"].tolist() == [0, 150, 190, 320, 380]


def test_varlen_without_boundaries_keeps_the_window() -> None:
    query, key, value = torch.randn(3, 1, 2, 6, 8)
    whole, _ = varlen(torch.nn.Module(), query, key, value, None, sliding_window=2)
    last, _ = varlen(torch.nn.Module(), query[:, :, 5:], key, value, None, sliding_window=2)
    two = torch.nn.functional.scaled_dot_product_attention(query[:, :, 5:], key[:, :, 4:], value[:, :, 4:])
    torch.testing.assert_close(whole[:, 5:], two.transpose(1, 2))
    torch.testing.assert_close(last, two.transpose(1, 2))


def test_varlen_is_refused_where_it_would_ignore_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="attention_dropout"):
        check_kernel(tiny_model(attention_dropout=0.1, num_key_value_heads=2).config, "varlen")
    config = tiny_model(num_key_value_heads=2, **FIELDS["window in every layer"]).config
    monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(flash, frozenset({"is_causal"})))
    with pytest.raises(ModelError, match="use_sliding_window"):
        check_kernel(config, "varlen")
    check_kernel(config, "sdpa")
