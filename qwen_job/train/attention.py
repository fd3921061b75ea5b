"""Attention with true document boundaries, whatever the kernel.

- ``inputs_for``: a batch as the arguments of the model's forward
- ``varlen``: torch's variable-length FlashAttention, registered with transformers (CUDA, sm_80 and newer)
- ``block_mask``: the same boundaries as a mask, for sdpa and eager
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from qwen_job.train.batches import Batch

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn

    _TAKES = frozenset(inspect.signature(_varlen_attn).parameters)
except ImportError:  # torch before 2.10: the plan chooses sdpa
    _TAKES = frozenset()

VARLEN = "qwen_job_varlen"


def implementation(kind: str) -> str:
    """Return the name by which transformers knows this attention, registering ours first."""
    if kind != "varlen":
        return kind
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen)
    return VARLEN


def inputs_for(batch: Batch, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of the model's forward; tensors [B, S], or [1, B S] for varlen."""
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    if kind == "varlen":
        inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        return {**inputs, **_boundaries(batch)}
    if any(len(lengths) > 1 for lengths in batch["document_lengths"]):
        mask = block_mask(batch["document_ids"])
        inputs["attention_mask"] = mask if kind == "sdpa" else _additive(mask, dtype)
    return inputs


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
    dropout: float = 0.0,  # noqa: ARG001
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents; query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D].

    Without boundaries (generation, the export's probe) it is plain causal attention.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    # torch 2.10 says is_causal where later ones take a window, and knows no other scale than D ** -0.5.
    grouped = q.shape[1] != k.shape[1]
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1, 0), "is_causal": True, "enable_gqa": grouped}
    chosen = {name: value for name, value in options.items() if name in _TAKES}
    attended: Any = _varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **chosen)
    return attended.unsqueeze(0), None


def _boundaries(batch: Batch) -> dict[str, Any]:
    lengths = [length for row in batch["document_lengths"] for length in row]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    device = batch["input_ids"].device
    # The row length bounds every document's, and stays the same from batch to batch for a compiled layer.
    return {"cu_seq_lens_q": ends.to(device, non_blocking=True), "max_length_q": batch["input_ids"].shape[1]}


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
