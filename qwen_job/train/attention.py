"""Attention with true document boundaries, whatever the kernel.

- ``window_of``: the sliding window of a loaded model
- ``inputs_for``: a batch as the arguments of the model's forward
- ``varlen``: torch's kernels that take boundaries, registered with transformers: FlashAttention from compute capability
  8.0 on, the memory-efficient kernel below, whose cost follows the documents' lengths, too
- ``block_mask``: the same boundaries as a mask, for sdpa and eager
- ``by_document``: the same boundaries without a mask, one call of sdpa for each document, where GPUs share rows
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.train.batches import Batch

VARLEN = "qwen_job_varlen"
# Kernels start a block of threads for every this many queries that a document could have.
_BLOCK = 128
_ROUNDING = 0.02  # relative error of 16-bit attention and its gradients: about 0.001 in fp16, 0.005 in bf16
_CAUSAL = 1  # custom_mask_type of torch's memory-efficient kernel: causal from each document's first token


def implementation(kind: str) -> str:
    """Return the name by which transformers knows this attention, registering ours first."""
    if kind != "varlen":
        return kind
    register(varlen)
    return VARLEN


def register(attend: Callable[..., Any]) -> None:
    """Let transformers call ``attend`` for models whose attention is ``VARLEN``."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, attend)


class Kernel(NamedTuple):
    """torch's kernel, and the names of what it takes, which differ between versions."""

    call: Callable[..., Any]
    takes: frozenset[str]


_kernels: list[Kernel] = []


def varlen_kernel() -> Kernel:
    """Return torch's kernel for this GPU; torch 2.10 and later have both.

    It is looked up once, before layers are compiled; behind functools.cache, Dynamo would look it up again.
    """
    if not _kernels:
        _kernels.append(_find_kernel())
    return _kernels[0]


def _find_kernel() -> Kernel:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        names = {argument.name for argument in torch.ops.aten._efficient_attention_forward.default._schema.arguments}
        return Kernel(memory_efficient, frozenset({"scale", "enable_gqa", *names & {"window_size"}}))
    from torch.nn.attention.varlen import varlen_attn  # a second: it imports the compiler

    return Kernel(varlen_attn, frozenset(inspect.signature(varlen_attn).parameters))


def memory_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    _ends_of_keys: torch.Tensor,
    longest: int,
    _longest_key: int,
    *,
    scale: float | None,
    enable_gqa: bool,
    window_size: tuple[int, int] = (-1, 0),
) -> torch.Tensor:
    """Attend as torch's ``varlen_attn`` does, with the kernel of GPUs without FlashAttention: [T, heads, D] each.

    It is the call that scaled_dot_product_attention makes for nested tensors, and knows its own gradient.
    ``window_size``: keys to the left and right of a query, -1 for all of them.
    """
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
    near = {} if window_size[0] < 0 else {"window_size": window_size[0] + 1}
    out: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        query[None], key[None], value[None], None, ends, ends, longest, longest, 0.0, _CAUSAL, True, scale=scale, **near
    )[0]
    return out[0]


def window_of(config: Any) -> int | None:
    """Return how many tokens the sliding layers of a model see, None where no layer slides.

    ``config``: the model's own. A token sees itself and the ``window - 1`` before it.
    """
    kinds: list[str] = getattr(config, "layer_types", None) or []
    return int(config.sliding_window) if "sliding_attention" in kinds else None


def check_kernel(config: Any, kind: str) -> None:
    """Refuse a kernel that would ignore what the model's ``config`` says.

    Raises:
        ModelError: varlen with attention_dropout, or with a window that this torch's kernel does not take.
    """
    if kind != "varlen":
        return
    if getattr(config, "attention_dropout", 0.0):
        raise ModelError(
            f"config.json: attention_dropout: {config.attention_dropout} is not offered by varlen; "
            "write train.attention: sdpa"
        )
    if window_of(config) is not None and "window_size" not in varlen_kernel().takes:
        raise ModelError(
            f"config.json: use_sliding_window: varlen of torch {torch.__version__} takes no window; "
            "write train.attention: sdpa"
        )


def try_kernel(device: torch.device, dtype: torch.dtype, window: int | None = None) -> None:
    """Compare the memory-efficient kernel, which torch gives no promise for, with plain attention: milliseconds.

    ``window``: of the model's sliding layers.

    Raises:
        EnvironmentFault: it does not run here, or is off by more than rounding explains.
    """
    if varlen_kernel().call is not memory_efficient:
        return
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(67, 2, 64, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    ours = [part.detach().clone().requires_grad_() for part in exact]
    ends = torch.tensor([0, 5, 67], dtype=torch.int32, device=device)
    ids = torch.repeat_interleave(ends[1:] - ends[:-1])[None]
    q, k, v = (part.float().transpose(0, 1) for part in exact)
    near = len(ids[0]) if window is None else max(2, min(window, 9))
    seen = block_mask(ids)[0] & _near(len(ids[0]), near, device)
    scores = (q @ k.transpose(1, 2) / 8).masked_fill(~seen, float("-inf"))
    left = -1 if window is None else near - 1
    expected = (scores.softmax(-1) @ v).transpose(0, 1)
    try:
        options: dict[str, Any] = {"scale": 1 / 8, "enable_gqa": False, "window_size": (left, 0)}
        out = memory_efficient(ours[0], ours[1], ours[2], ends, ends, _BLOCK, _BLOCK, **options)
        slopes = [torch.autograd.grad(one.float().square().sum(), of) for one, of in ((expected, exact), (out, ours))]
        pairs = [(expected.detach(), out.detach()), *zip(*slopes, strict=True)]
        # torch's max(), unlike Python's, is NaN if one of them is.
        off = float(torch.stack([(mine.float() - true.float()).norm() / true.norm() for true, mine in pairs]).max())
    except RuntimeError as error:
        raise EnvironmentFault(_unusable(str(error).splitlines()[0])) from None
    if not off < _ROUNDING:
        raise EnvironmentFault(_unusable(f"it is off by {off:.1%}"))


def _unusable(reason: str) -> str:
    kernel = f"torch {torch.__version__}'s memory-efficient attention cannot be used on this GPU"
    return f"train.attention: varlen: {kernel}: {reason}; write train.attention: sdpa"


def inputs_for(
    batch: Batch, kind: str, dtype: torch.dtype, window: int | None = None, *, linear: bool = False
) -> dict[str, object]:
    """Return the arguments of the model's forward; tensors [B, S], or [1, B S] for varlen.

    ``window``: of the model's sliding layers (varlen takes it from each layer itself); ``linear``: the model has layers
    of linear attention, which know documents by their boundaries in [B S] whatever the kernel of the others.
    """
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if kind == "varlen":
        inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        return {**inputs, **_boundaries(batch)}
    packed = any(len(lengths) > 1 for lengths in batch["document_lengths"])
    if packed or window is not None:
        masks = _masks(batch["document_ids"], kind, dtype, window)
        inputs["attention_mask"] = {"full_attention": masks, "linear_attention": None} if linear else masks
    return {**inputs, **_boundaries(batch)} if linear else inputs


def _masks(document_ids: torch.Tensor, kind: str, dtype: torch.dtype, window: int | None) -> Any:
    whole = block_mask(document_ids)
    masks = {"full_attention": whole}
    if window is not None:
        masks["sliding_attention"] = whole & _near(document_ids.shape[1], window, whole.device)
    shaped = {name: mask if kind == "sdpa" else _additive(mask, dtype) for name, mask in masks.items()}
    # By the kind of layer, as the model's forward would make them itself.
    return shaped if window is not None else shaped["full_attention"]


def _near(size: int, window: int, device: torch.device) -> torch.Tensor:
    """Return [S, S], True where key j is less than ``window`` tokens before query i."""
    return torch.ones(size, size, dtype=torch.bool, device=device).triu(1 - window)


def block_mask(document_ids: torch.Tensor) -> torch.Tensor:
    """Return [B, 1, S, S], True where query i may look at key j: same document and j <= i."""
    same = document_ids[:, :, None] == document_ids[:, None, :]
    return same.tril().unsqueeze(1)


def varlen(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (the interface of transformers)
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 (check_kernel refuses it)
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents; query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D].

    ``sliding_window``: tokens that a query sees, itself counted. Without boundaries (generation, the export's probe)
    it is plain causal attention within that window.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        near = None if sliding_window is None else _last_queries(query.shape[2], key.shape[2], sliding_window, query)
        causal = near is None and query.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=near, is_causal=causal, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    # torch 2.10 says is_causal where later ones take a window, and knows no other scale than D ** -0.5.
    grouped, left = q.shape[1] != k.shape[1], -1 if sliding_window is None else sliding_window - 1
    options: dict[str, Any] = {"scale": scaling, "window_size": (left, 0), "is_causal": True, "enable_gqa": grouped}
    chosen = {name: value for name, value in options.items() if name in varlen_kernel().takes}
    attended: Any = varlen_kernel().call(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **chosen)
    return attended.unsqueeze(0), None


def by_document(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as ``varlen`` does, on any device and in any precision: memory grows with the row, not with its square."""
    if cu_seq_lens_q is None:
        return varlen(module, query, key, value, attention_mask, scaling, **options)
    # Repeated, because grouped heads are not offered by every kernel that needs no matrix of scores.
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in (key, value))
    lengths = cu_seq_lens_q.diff().tolist()
    attended = [
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def _last_queries(queries: int, keys: int, window: int, like: torch.Tensor) -> torch.Tensor:
    """Return [Q, K], True where one of the last ``queries`` of ``keys`` tokens may look at key j."""
    near = _near(keys, window, like.device)
    return near.tril()[keys - queries :]


def _boundaries(batch: Batch) -> dict[str, object]:
    longest = max(length for row in batch["document_lengths"] for length in row)
    # Rounded up, so that there are few of them: a compiled layer is compiled for the first two.
    return {"cu_seq_lens_q": batch["boundaries"], "max_length_q": -(-longest // _BLOCK) * _BLOCK}


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
