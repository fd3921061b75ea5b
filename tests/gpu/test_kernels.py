"""Every kernel that a GPU job may use, against float32 on the same numbers."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.train]

torch = pytest.importorskip("torch")
from qwen_job.train import attention as kernels  # noqa: E402
from qwen_job.train import loss as losses  # noqa: E402
from qwen_job.train import packed_state  # noqa: E402
from qwen_job.train.attention import block_mask, implementation, inputs_for, varlen  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from qwen_job.train.checkpoints import Snapshots  # noqa: E402
from qwen_job.train.kernels import use_lean_kernels, use_lean_rotation  # noqa: E402
from tests.train.test_batches import row  # noqa: E402

LENGTHS = (5, 64, 1, 130, 56)


def error(ours: Any, exact: Any) -> float:
    """Return the relative error in the 2-norm."""
    return float((ours.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("kind", ["for this GPU", "memory-efficient"])
@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_varlen_attention_keeps_documents_apart(
    dtype: Any, kv_heads: int, kind: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "memory-efficient":
        takes = frozenset({"scale", "enable_gqa", "window_size"})
        monkeypatch.setattr(kernels, "varlen_kernel", lambda: kernels.Kernel(kernels.memory_efficient, takes))
    if window is not None and "window_size" not in kernels.varlen_kernel().takes:
        pytest.skip("this torch's kernel takes no window")
    total, heads, width = sum(LENGTHS), 8, 64
    torch.manual_seed(0)
    parts = [torch.randn(1, n, total, width, device="cuda") for n in (heads, kv_heads, kv_heads)]
    slope = torch.randn(1, total, heads, width, device="cuda")
    ids = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None].cuda()
    exact = [part.clone().requires_grad_() for part in parts]
    repeated = [exact[0], *(part.repeat_interleave(heads // kv_heads, 1) for part in exact[1:])]
    seen = block_mask(ids)
    if window is not None:
        seen &= torch.ones_like(seen).triu(1 - window)
    scores = (repeated[0] @ repeated[1].transpose(-1, -2) * width**-0.5).masked_fill(~seen, float("-inf"))
    expected = (scores.softmax(-1) @ repeated[2]).transpose(1, 2)
    (expected * slope).sum().backward()
    ours = [part.to(dtype).requires_grad_() for part in parts]
    ends = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    packed: dict[str, Any] = {"cu_seq_lens_q": ends, "max_length_q": 256, "sliding_window": window}
    out, _ = varlen(torch.nn.Module(), *ours, None, scaling=width**-0.5, **packed)
    (out * slope).sum().backward()
    limit = 1e-2 if dtype == torch.bfloat16 else 2e-3
    assert error(out, expected) < limit
    for mine, theirs in zip(ours, exact, strict=True):
        assert error(mine.grad, theirs.grad) < limit


def gradients(kind: str, dtype: Any) -> tuple[float, Any, Any]:
    """Return loss and gradients of one loss kernel over 3,000 tokens and a vocabulary of 20,000."""
    torch.manual_seed(1)
    hidden = torch.randn(3000, 256, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(20000, 256, device="cuda") * 0.1).to(dtype).requires_grad_()
    targets = torch.randint(0, 20000, (3000,), device="cuda")
    loss = losses.fused_loss(kind)(hidden, weight, targets)
    (loss / 3000).backward()
    return loss.item(), hidden.grad, weight.grad


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chunked_loss_is_exact(dtype: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = gradients("none", torch.float32)
    monkeypatch.setattr(losses, "_chunk_step", losses._chunk_step)
    if compiled:
        losses.compile_chunks()
    loss, *slopes = gradients("chunked", dtype)
    assert loss == pytest.approx(exact[0], rel=2e-4)
    for ours, theirs in zip(slopes, exact[1:], strict=True):
        assert error(ours, theirs) < (1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_the_chunked_sum_over_many_equal_targets_stays_finite_in_fp16() -> None:
    hidden = torch.full((4096, 64), 60.0, device="cuda", dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(500, 64, device="cuda", dtype=torch.float16, requires_grad=True)
    (losses.chunked(hidden, weight, torch.zeros(4096, dtype=torch.long, device="cuda")) / 4096).backward()
    # Each token pulls its target's row by p - 1 = -0.998 of 60.
    assert weight.grad[0, 0].item() == pytest.approx(-60 * (1 - 1 / 500), rel=2e-3)


def test_liger_agrees_where_it_is_installed() -> None:
    pytest.importorskip("liger_kernel")
    exact = gradients("none", torch.float32)
    loss, *slopes = gradients("liger", torch.bfloat16)
    assert loss == pytest.approx(exact[0], rel=1e-3)
    for ours, theirs in zip(slopes, exact[1:], strict=True):
        assert error(ours, theirs) < 3e-2


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_a_packed_model_in_bf16_agrees_with_float32(compiled: bool) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(**sizes, num_key_value_heads=2, head_dim=32, vocab_size=512, use_cache=False)
    exact = Qwen3ForCausalLM(config).cuda()
    config = copy.deepcopy(config)
    config._attn_implementation = implementation("varlen")
    ours = Qwen3ForCausalLM(config)
    ours.load_state_dict(exact.state_dict())
    ours = ours.cuda().bfloat16()
    use_lean_kernels(ours)
    if compiled:
        use_lean_rotation(ours, wanted=False)
        for layer in ours.model.layers:
            layer.compile()
    batch = collate([(0, row(7, 30, 11)), (1, row(40, 8))], pad_id=0)
    batch = {key: value.cuda() if torch.is_tensor(value) else value for key, value in batch.items()}
    results = []
    for model, kind, attention in ((exact, "none", "sdpa"), (ours, "chunked", "varlen")):
        inputs = inputs_for(batch, attention, next(model.parameters()).dtype)
        total = losses.LossHead(model, kind).loss(model, inputs, batch["targets"], batch["chosen"])
        total.backward()
        results.append((total.item(), [parameter.grad for parameter in model.parameters()]))
    assert results[1][0] == pytest.approx(results[0][0], rel=5e-3)
    for mine, theirs in zip(results[1][1], results[0][1], strict=True):
        assert error(mine, theirs) < 4e-2


def test_a_snapshot_keeps_what_the_gpu_changes_later() -> None:
    snapshots = Snapshots()
    for number in (1.0, 2.0):
        snapshots.restart()
        state = {"a": torch.full((1000,), number, device="cuda"), "b": [torch.arange(5).cuda(), "text", 7]}
        copied = snapshots.copy(state)
        torch.cuda.synchronize()
        state["a"].zero_()
        assert copied["a"].device.type == "cpu" and copied["a"].tolist() == [number] * 1000
        assert copied["b"][0].tolist() == list(range(5)) and copied["b"][1:] == ["text", 7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [(2, 4, 64), (16, 32, 128)], ids=["small", "4B"])
def test_linear_attention_keeps_documents_apart(dtype: Any, heads: tuple[int, int, int]) -> None:
    """Of flash-linear-attention's kernels, convolution included, and gradients: beside torch, document by document."""
    pytest.importorskip("fla", reason="needs fla-core")
    from transformers.models.qwen3_5 import modeling_qwen3_5 as home

    keys, values, width = heads
    layer = SimpleNamespace(
        key_dim=keys * width, value_dim=values * width, head_k_dim=width, head_v_dim=width, num_v_heads=values,
        conv_kernel_size=4,
    )  # fmt: skip
    device = torch.device("cuda")
    found, why = packed_state.choose_kernels(device)
    assert found is not None, why
    assert packed_state.deviation(found, packed_state.by_document(home), layer, device, dtype) < 2e-2
