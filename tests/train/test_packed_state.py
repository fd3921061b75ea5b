"""Linear attention forgets everything at a document's border: a packed row is its documents, each alone.

A tiny hybrid in float32 on the CPU, one thread; 15 s in all.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.models.linear_attention import choose_by_device, home_of, torch_formula  # noqa: E402
from qwen_job.models.loading import load_native  # noqa: E402
from qwen_job.train import compiling, packed_state  # noqa: E402
from qwen_job.train.attention import inputs_for  # noqa: E402
from qwen_job.train.batches import collate  # noqa: E402
from qwen_job.train.modeling import parameter_is_matrix, shape_of  # noqa: E402
from tests.support.tiny_models import TINY, write_folder  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hybrid") / "model", "qwen3_5", initializer_range=0.1)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    found = load_native(folder, torch.float32, "sdpa")[0].train()
    assert packed_state.keep_documents_apart(found, CPU, torch.float32) == []
    return found


class Row:
    """A prepared row of random tokens."""

    def __init__(self, lengths: Sequence[int], seed: int = 0) -> None:
        size, generator = sum(lengths), torch.Generator().manual_seed(seed)
        self.document_lengths = list(lengths)
        self.input_ids = torch.randint(0, 500, (size,), generator=generator).tolist()
        self.labels = self.input_ids
        self.position_ids = [place for length in lengths for place in range(length)]


def packed(model: Any, rows: Sequence[Row], kind: str = "sdpa", length: int = 1) -> Any:
    """Return the logits [B, S, V] of rows in one batch."""
    batch = collate(list(enumerate(rows)), 0, length)
    inputs = inputs_for(batch, kind, torch.float32, linear=True)
    return model(**inputs, use_cache=False).logits.view(len(rows), -1, model.config.vocab_size)


def alone(model: Any, row: Row) -> Any:
    """Return the logits [T, V] of a row's documents, each in its own forward of transformers' own layers."""
    ids = torch.tensor(row.input_ids).split(row.document_lengths)
    return torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids])


def gradients(model: Any, total: Any) -> dict[str, Any]:
    model.zero_grad()
    total.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, expected in theirs.items():
        assert (ours[name] - expected).norm() <= 1e-4 * expected.norm(), name


def test_the_logits_are_those_of_each_document_wherever_the_border_is(model: Any) -> None:
    for border in range(1, 66):
        row = Row([border, 90 - border], border)
        with torch.no_grad():
            assert (packed(model, [row])[0] - alone(model, row)).abs().max() <= 1e-5, border


def test_without_the_boundaries_they_are_not(model: Any) -> None:
    row = Row([37, 90])
    with torch.no_grad():
        leaked = model(input_ids=torch.tensor([row.input_ids]), position_ids=torch.tensor([row.position_ids])).logits
        assert (leaked[0] - alone(model, row)).abs().max() > 0.1


LAYOUTS: dict[str, list[list[int]]] = {
    "one-token documents": [[1, 1, 1, 5, 1, 64, 1]],
    "shorter than the convolution": [[2, 3, 60, 65, 3]],
    "a chunk more and less": [[63, 64, 65, 128]],
    "rows with a pad tail": [[7, 70], [50], [1, 1]],
}


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_gradients_are_those_of_each_document(
    model: Any, layout: str, checkpointing: bool, kind: str
) -> None:
    model.set_attn_implementation(kind)
    rows = [Row(lengths, seed) for seed, lengths in enumerate(LAYOUTS[layout])]
    expected = torch.cat([alone(model, row) for row in rows])
    wanted = gradients(model, (expected * torch.sin(expected)).sum())
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        out = packed(model, rows, kind)
        found = torch.cat([part[: len(row.input_ids)] for part, row in zip(out, rows, strict=True)])
        assert (found - expected).abs().max() <= 1e-5
        assert_same(gradients(model, (found * torch.sin(found)).sum()), wanted)
    finally:
        model.activation_checkpointing_disable()
        model.set_attn_implementation("sdpa")


def test_varlen_rows_of_a_batch_are_kept_apart_too(model: Any) -> None:
    """The kernel of varlen needs a GPU: the full layers get a mask in its place, the linear ones the same arguments."""
    rows = [Row([30, 40], 1), Row([70], 2)]
    batch = collate(list(enumerate(rows)), 0)
    inputs = inputs_for(batch, "varlen", torch.float32, linear=True)
    assert inputs["input_ids"].shape == (1, 140) and "attention_mask" not in inputs
    same = torch.repeat_interleave(torch.arange(3), torch.tensor([30, 40, 70]))
    mask = (same[:, None] == same[None]).tril()[None, None]
    inputs["attention_mask"] = {"full_attention": mask, "linear_attention": None}
    with torch.no_grad():
        out = model(**inputs, use_cache=False).logits[0]
        assert (out - torch.cat([alone(model, row) for row in rows])).abs().max() <= 1e-5


def test_generation_keeps_its_state_from_token_to_token(model: Any) -> None:
    ids = torch.tensor([Row([20]).input_ids])
    model.eval()
    with torch.no_grad():
        step = model(input_ids=ids[:, :15], use_cache=True)
        cache, logits = step.past_key_values, [step.logits[0, -1]]
        for place in range(15, 20):
            step = model(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
            logits.append(step.logits[0, -1])
        whole = model(input_ids=ids, use_cache=False).logits[0, 14:]
    model.train()
    assert (torch.stack(logits) - whole).abs().max() <= 1e-5


def test_only_full_layers_cost_more_for_longer_documents(model: Any) -> None:
    assert shape_of(model).layers == 1


def test_weights_of_16_bits_are_reported(folder: Path) -> None:
    model = load_native(folder, torch.bfloat16, "sdpa")[0]
    (note,) = packed_state.keep_documents_apart(model, CPU, torch.bfloat16)
    assert "A_log and dt_bias are rounded to bfloat16" in note
    row = Row([37, 1, 52])
    with torch.no_grad():
        assert (packed(model, [row])[0] - alone(model, row)).abs().max() <= 2**-5  # logits' scale is 2


def test_norms_decay_rates_and_convolutions_are_not_decayed(model: Any) -> None:
    named = dict(model.named_parameters())
    decayed = {name for name, parameter in named.items() if parameter_is_matrix(name, parameter)}
    parts = {re.sub(r"model.layers.[0-9]+.", "", name) for name in named.keys() - decayed}
    assert parts == {
        "input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight", "self_attn.q_norm.weight",
        "self_attn.k_norm.weight", "linear_attn.norm.weight", "linear_attn.A_log", "linear_attn.dt_bias",
        "linear_attn.conv1d.weight",
    }  # fmt: skip
    assert {"model.embed_tokens.weight", "lm_head.weight"} < decayed


class Flash:
    """A stand-in for flash-linear-attention: checks what its kernels may be given, and computes it in plain torch."""

    def __init__(self, home: ModuleType) -> None:
        self.exact = packed_state.by_document(home)
        self.calls: list[str] = []
        self.error = 0.0

    def causal_conv1d(
        self, x: Any, weight: Any = None, bias: Any = None, *, activation: str | None, cu_seqlens: Any
    ) -> tuple[Any, None]:
        assert x.ndim == 3 and x.shape[0] == 1 and x.is_contiguous()
        assert weight.shape == (x.shape[2], 4) and activation == "silu"
        self._check(cu_seqlens, x.shape[1], "convolution")
        return self.exact.convolve(x, weight, bias, cu_seqlens) * (1 + self.error), None

    def chunk_gated_delta_rule(
        self, q: Any, k: Any, v: Any, *, g: Any, beta: Any, use_qk_l2norm_in_kernel: bool, cu_seqlens: Any
    ) -> tuple[Any, None]:
        assert use_qk_l2norm_in_kernel and q.shape == k.shape and q.shape[:2] == v.shape[:2] == g.shape[:2]
        assert g.shape == beta.shape == v.shape[:3] and v.shape[2] % q.shape[2] == 0
        assert g.dtype == torch.float32 and (g <= 0).all() and (beta >= 0).all() and (beta <= 1).all()
        self._check(cu_seqlens, q.shape[1], "rule")
        return self.exact.delta(q, k, v, g, beta, cu_seqlens), None

    def _check(self, ends: Any, tokens: int, name: str) -> None:
        lengths = ends[1:] - ends[:-1]
        assert ends.dtype == torch.int32 and ends[0] == 0 and ends[-1] == tokens and (lengths > 0).all()
        self.calls.append(name)


@pytest.fixture
def flash(model: Any, monkeypatch: pytest.MonkeyPatch) -> Flash:
    """Install the stand-in under the names that fla-core 0.6.0 has."""
    found = Flash(home_of(model))
    modules = {name: ModuleType(name) for name in ("fla", "fla.modules", "fla.modules.conv", "fla.ops")}
    modules["fla.ops.gated_delta_rule"] = ModuleType("fla.ops.gated_delta_rule")
    modules["fla.modules.conv"].causal_conv1d = found.causal_conv1d  # type: ignore[attr-defined]
    modules["fla.ops.gated_delta_rule"].chunk_gated_delta_rule = found.chunk_gated_delta_rule  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Let the choice of kernels believe in a GPU; tensors stay on the CPU."""
    monkeypatch.setattr(packed_state.torch.cuda, "get_device_capability", lambda _device=None: capability)
    true = packed_state.deviation
    monkeypatch.setattr(packed_state, "deviation", lambda k, e, layer, _device, dtype: true(k, e, layer, CPU, dtype))


def test_a_gpu_gets_the_kernels_with_the_boundaries_of_both_operations(
    folder: Path, flash: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, (9, 0))
    model = load_native(folder, torch.float32, "sdpa")[0]
    assert packed_state.keep_documents_apart(model, torch.device("cuda", 0), torch.float32) == []
    flash.calls.clear()
    row = Row([1, 63, 3, 60])
    with torch.no_grad():
        out = packed(model, [row], length=140)[0, : len(row.input_ids)]
    assert flash.calls == ["convolution", "rule"] * 3
    assert (out - alone(model, row)).abs().max() <= 1e-5


def test_a_kernel_that_is_wrong_is_not_used_and_the_log_says_why(
    folder: Path, flash: Flash, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, (8, 0))
    flash.error = 0.2
    model = load_native(folder, torch.float32, "sdpa")[0]
    (note,) = packed_state.keep_documents_apart(model, torch.device("cuda", 0), torch.float32)
    assert re.search(r"fla-core is off by \d+\.\d% on this GPU.*exact but several times slower", note)
    flash.calls.clear()
    row = Row([30, 40])
    with torch.no_grad():
        assert (packed(model, [row])[0] - alone(model, row)).abs().max() <= 1e-5
    assert flash.calls == []


@pytest.mark.parametrize("which", ["convolve", "delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_kernel_that_reads_over_a_border_is_found_out(model: Any, which: str, dtype: Any) -> None:
    exact, layer = packed_state.by_document(home_of(model)), packed_state.linear_layers(model)[0]
    true = getattr(exact, which)
    leaking = exact._replace(**{which: lambda *parts: true(*parts[:-1], parts[-1][[0, -1]])})
    assert "is off by" in packed_state.why_unusable(leaking, home_of(model), layer, CPU, dtype)
    assert packed_state.why_unusable(exact, home_of(model), layer, CPU, dtype) == ""


def test_a_kernel_that_fails_is_not_used(folder: Path, flash: Flash, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, (8, 0))
    monkeypatch.setattr(flash, "_check", lambda *_: 1 / 0)
    model = load_native(folder, torch.float32, "sdpa")[0]
    (note,) = packed_state.keep_documents_apart(model, torch.device("cuda", 0), torch.float32)
    assert "does not run on this GPU (ZeroDivisionError" in note


@pytest.mark.parametrize(
    ("capability", "missing", "reason"),
    [((7, 0), False, "needs compute capability 8.0, and this GPU has 7.0"), ((8, 0), True, "is not installed")],
    ids=["V100", "without the package"],
)
def test_a_gpu_that_goes_without_is_told_what_that_costs(
    flash: Flash, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], missing: bool, reason: str
) -> None:
    on_a_gpu(monkeypatch, capability)
    if missing:
        monkeypatch.setitem(sys.modules, "fla.modules.conv", None)
    kernels, why = packed_state.choose_kernels(torch.device("cuda", 0))
    assert kernels is None and reason in why and flash.calls == []


def test_a_cpu_computes_in_torch_though_transformers_found_a_kernel_of_the_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fla-core installed, transformers takes its kernel at import, which a tensor on the CPU must not reach."""
    model = load_native(folder, torch.float32, "sdpa")[0]
    home, tokens = home_of(model), torch.tensor([Row([20]).input_ids])
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits

    def refuse() -> Any:
        raise RuntimeError("0 active drivers")

    for name in ("causal_conv1d_fn", "torch_chunk_gated_delta_rule"):
        monkeypatch.setattr(home, name, functools.wraps(torch_formula(home, name))(lambda *_, **__: refuse()))
    with pytest.raises(RuntimeError, match="active drivers"):
        model(input_ids=tokens, use_cache=False)
    choose_by_device(home)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens, use_cache=False).logits, expected)


def test_experts_have_linear_layers_too() -> None:
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    values = {**TINY["qwen3_5_moe_text"], "num_experts": 2, "num_experts_per_tok": 1}
    fields = {
        key: value for key, value in values.items() if key not in ("name", "architecture", "source", "torch_dtype")
    }
    model = Qwen3_5MoeForCausalLM._from_config(Qwen3_5MoeTextConfig(**fields))
    packed_state.keep_documents_apart(model, CPU, torch.float32)
    assert len(packed_state.linear_layers(model)) == 3
    row = Row([37, 1, 52])
    with torch.no_grad():
        assert (packed(model, [row])[0] - alone(model, row)).abs().max() <= 1e-5


def test_a_document_without_tokens_leaves_no_boundary() -> None:
    row = Row([3, 0, 4])
    assert collate([(0, row)], 0, 9)["boundaries"].tolist() == [0, 3, 9]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_layers_keep_documents_apart_and_are_compiled_once(folder: Path) -> None:
    """The kernels stay outside of the graphs, so that rows with other documents need no other graphs."""
    from torch._dynamo.utils import counters

    model = load_native(folder, torch.float32, "sdpa")[0].train()
    packed_state.keep_documents_apart(model, CPU, torch.float32)
    rows = [Row([1, 63, 3, 60]), Row([100, 27], 1), Row([30, 30, 1, 30, 30, 6], 2)]
    expected = [alone(model, row) for row in rows]
    wanted = gradients(model, (expected[1] * torch.sin(expected[1])).sum())
    # torch's own way to patch: pytest's hides a setting for good when it restores it.
    with (
        torch.compiler.config.patch(dynamic_sources=compiling._VARYING),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.compile(backend="aot_eager")
        graphs = []
        for row, exact in zip(rows, expected, strict=True):
            out = packed(model, [row])[0]
            assert (out - exact).abs().max() <= 5e-5  # the compiler sums in another order
            graphs.append(counters["stats"]["unique_graphs"])
        out = packed(model, [rows[1]])[0]
        assert_same(gradients(model, (out * torch.sin(out)).sum()), wanted)
    torch._dynamo.reset()
    assert graphs[0] > 0 and graphs[1] == graphs[2], graphs
