"""Linear attention within documents: its state and its convolution begin again at every document border of a row.

transformers resets neither by itself: with ``cu_seqlens`` alone the convolution still reads three tokens of the one
before, and without flash-linear-attention packed rows are refused, or mixed up if they come without ``cu_seqlens``.

- ``keep_documents_apart``: gives the linear layers of a loaded model ``mix`` as their forward
- ``choose_kernels``: flash-linear-attention's on GPUs that run them, else torch's formulas, document by document
- ``deviation``: how far the first are from the second, measured before a run relies on them
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own habit)

from qwen_job.facts.compiling import LINEAR_KERNELS_FROM
from qwen_job.models.linear_attention import home_of, torch_formula
from qwen_job.train.shared_heads import ALONE, SharedHeads

PACKAGE = "fla-core"
# Largest relative error of the kernels and their gradients. 16 bits explain about 0.01; a state or a convolution that
# runs over a border of the trial is off by 0.2 and more.
_ROUNDING = 0.05
# Documents of 1, 3, 63, 64 and 64 tokens: shorter than the convolution, and around a chunk of 64.
_TRIAL_ENDS = (0, 1, 4, 67, 131, 195)


class Kernels(NamedTuple):
    """The two operations that carry something from token to token; both begin again at every one of ``ends`` [D + 1].

    ``convolve``: x [1, T, C], weight [C, W], bias, ends -> [1, T, C], SiLU applied;  ``delta``: queries and keys
    [1, T, K, E], values [1, T, V, E], log decay and beta [1, T, V], ends -> [1, T, V, E].
    """

    convolve: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
    delta: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def linear_layers(model: Any) -> list[Any]:
    """Return the linear attention modules of a model, dense or with experts."""
    return [module for module in model.modules() if type(module).__name__.endswith("GatedDeltaNet")]


def keep_documents_apart(model: Any, device: torch.device, dtype: torch.dtype, heads: SharedHeads = ALONE) -> list[str]:
    """Make the model's linear layers respect ``cu_seq_lens_q`` where it is given; returns notes for the log.

    ``heads``: this rank's part of them where ranks share rows.
    """
    layers = linear_layers(model)
    if not layers:
        return []
    kernels, why_not = choose_kernels(device)
    if kernels is not None:
        why_not = why_unusable(kernels, home_of(model), layers[0], device, dtype)
    chosen = by_document(home_of(model)) if kernels is None or why_not else kernels
    # A layer is compiled around the collectives of ranks that share rows.
    mixes = mix if heads.size == 1 else torch.compiler.disable(mix)
    for layer in layers:
        layer.forward = MethodType(partial(mixes, chosen, heads, layer.forward), layer)
    notes = [
        f"linear attention: {why_not}: documents are computed one after another with torch's formulas, which is exact "
        "but several times slower"
    ] * bool(why_not)
    if dtype != torch.float32:
        notes.append(
            f"linear attention: A_log and dt_bias are rounded to {str(dtype).removeprefix('torch.')}, as DeepSpeed "
            "keeps all weights; the optimizer's copies and the recurrent state are float32"
        )
    return notes


def choose_kernels(device: torch.device) -> tuple[Kernels | None, str]:
    """Return flash-linear-attention's kernels, or None and why a GPU goes without (empty on a CPU)."""
    if device.type != "cuda":
        return None, ""
    capability = torch.cuda.get_device_capability(device)
    if capability < LINEAR_KERNELS_FROM:
        have, need = (".".join(map(str, pair)) for pair in (capability, LINEAR_KERNELS_FROM))
        return None, f"{PACKAGE} needs compute capability {need}, and this GPU has {have}"
    try:
        return _flash_kernels(), ""
    except ImportError as error:
        return None, f"{PACKAGE} is not installed ({error}); the ampere image has it"


def _flash_kernels() -> Kernels:
    from fla.modules.conv import causal_conv1d
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
        out: Tensor = causal_conv1d(x.contiguous(), weight, bias, activation="silu", cu_seqlens=ends)[0]
        return out

    def delta(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, ends: Tensor) -> Tensor:
        options = {"use_qk_l2norm_in_kernel": True, "cu_seqlens": ends}
        out: Tensor = chunk_gated_delta_rule(query, key, value, g=decay, beta=beta, **options)[0]
        return out

    return _eager(convolve, delta)


def by_document(home: ModuleType) -> Kernels:
    """Return transformers' own formulas, in torch, called once for each document."""
    convolution = torch_formula(home, "causal_conv1d_fn")
    rule = torch_formula(home, "torch_chunk_gated_delta_rule")

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
        parts = x.transpose(1, 2).split(_lengths(ends), dim=2)
        return torch.cat([convolution(part, weight, bias, "silu") for part in parts], dim=2).transpose(1, 2)

    def delta(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, ends: Tensor) -> Tensor:
        lengths = _lengths(ends)
        documents = zip(*(part.split(lengths, dim=1) for part in (query, key, value, decay, beta)), strict=True)
        done = [rule(q, k, v, g=g, beta=b, use_qk_l2norm_in_kernel=True)[0] for q, k, v, g, b in documents]
        return torch.cat(done, dim=1)

    return _eager(convolve, delta)


def _eager(convolve: Any, delta: Any) -> Kernels:
    """Keep the compiler out of both: the number of documents differs from row to row."""
    return Kernels(torch.compiler.disable(convolve), torch.compiler.disable(delta))


def _lengths(ends: Tensor) -> list[int]:
    return (ends[1:] - ends[:-1]).tolist()


def mix(
    kernels: Kernels,
    heads: SharedHeads,
    stock: Callable[..., Tensor],
    layer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Compute a GatedDeltaNet's forward, [B, S, H] -> [B, S, H], with documents of ``cu_seq_lens_q`` in [B S].

    Where ranks share rows, [B, S] is this rank's slice, and ``cu_seq_lens_q`` is of the whole row. Without boundaries
    (generation, the export's probe) it is ``stock``, the layer's own.
    """
    if cu_seq_lens_q is None:
        return stock(hidden_states, cache_params=cache_params, attention_mask=attention_mask, **options)
    row = hidden_states.reshape(1, -1, hidden_states.shape[-1])
    ends, blocks = cu_seq_lens_q, [layer.key_dim, layer.key_dim, layer.value_dim]
    channels, decay, beta = _of_whole_row(layer, heads, row, blocks)
    weight, bias = layer.conv1d.weight.squeeze(1), layer.conv1d.bias
    bias = bias if bias is None else heads.own(bias, blocks)
    mixed = kernels.convolve(channels, heads.own(weight, blocks), bias, ends)
    query, key, value = mixed.split([block // heads.size for block in blocks], dim=-1)
    query, key = (part.unflatten(-1, (-1, layer.head_k_dim)) for part in (query, key))
    out = kernels.delta(query, key, value.unflatten(-1, (-1, layer.head_v_dim)), decay, beta, ends)
    out = heads.own_slice(out.flatten(2))
    gate = layer.in_proj_z(row).reshape(-1, layer.head_v_dim)
    normed: Tensor = layer.norm(out.reshape(-1, layer.head_v_dim), gate)
    projected: Tensor = layer.out_proj(normed.reshape(row.shape[0], row.shape[1], -1))
    return projected.reshape(hidden_states.shape)


def _of_whole_row(layer: Any, heads: SharedHeads, row: Tensor, blocks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution's channels, log decay and beta of this rank's ``heads``, for all of the row."""
    gates = [layer.in_proj_a(row), layer.in_proj_b(row)]
    if heads.size == 1:
        channels, (a, b) = layer.in_proj_qkv(row), gates
    else:
        *parts, a, b = heads.whole_row([*layer.in_proj_qkv(row).split(blocks, dim=-1), *gates])
        channels = torch.cat(parts, dim=-1)
    rates, steps = (heads.own(weight, [layer.num_v_heads]) for weight in (layer.A_log, layer.dt_bias))
    # In float32: exp(A_log) may overflow in fp16.
    return channels, -rates.float().exp() * F.softplus(a.float() + steps), b.sigmoid()


def why_unusable(kernels: Kernels, home: ModuleType, layer: Any, device: torch.device, dtype: torch.dtype) -> str:
    """Return why ``kernels`` cannot be used with heads as those of ``layer``; empty: they are right. Takes seconds."""
    try:
        off = deviation(kernels, by_document(home), layer, device, dtype)
    except Exception as error:  # a compiler's, a driver's or a kernel's own
        return f"{PACKAGE} does not run on this GPU ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    # Written so that NaN fails, too.
    return "" if off < _ROUNDING else f"{PACKAGE} is off by {off:.1%} on this GPU"


def deviation(kernels: Kernels, exact: Kernels, layer: Any, device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest relative error of ``kernels`` and their gradients over a packed row of five documents."""
    generator, tokens = torch.Generator().manual_seed(0), _TRIAL_ENDS[-1]
    channels = 2 * layer.key_dim + layer.value_dim
    shapes = [(1, tokens, channels), (channels, layer.conv_kernel_size), (1, tokens, layer.num_v_heads, 2)]
    drawn = [torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes]
    ends = torch.tensor(_TRIAL_ENDS, dtype=torch.int32, device=device)

    def outcome(of: Kernels, kind: torch.dtype) -> list[Tensor]:
        x, weight, gates = (part.to(kind).requires_grad_() for part in drawn)
        mixed = of.convolve(x, weight, None, ends)
        query, key, value = mixed.split([layer.key_dim, layer.key_dim, layer.value_dim], dim=-1)
        query, key = (part.unflatten(-1, (-1, layer.head_k_dim)) for part in (query, key))
        value = value.unflatten(-1, (-1, layer.head_v_dim))
        # Plus 4: a state that fades within a few tokens would hide that it was not reset.
        out = of.delta(query, key, value, F.logsigmoid(gates[..., 0].float() + 4), gates[..., 1].sigmoid(), ends)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, weight, gates])]

    pairs = zip(outcome(kernels, dtype), outcome(exact, torch.float32), strict=True)
    # torch's max(), unlike Python's, is NaN if one of them is.
    return float(torch.stack([(mine.float() - true).norm() / true.norm() for mine, true in pairs]).max())
