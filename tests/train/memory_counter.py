"""Count the bytes that one micro-batch holds at its peaks, storage by storage, on a CPU.

- ``Live``: what operations have made and is still held, and the most of it
- ``count``: the peaks of a packed row of a tiny model, forward and backward
- ``stand_in``: attention that saves what FlashAttention saves, where a CPU would save more
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_job.models.loading import load_native
from qwen_job.train import sequence_parallel
from qwen_job.train.attention import implementation, register
from qwen_job.train.batches import collate
from qwen_job.train.loss import LossHead, Objective
from qwen_job.train.ranks import Ranks
from qwen_job.train.tiled_mlp import tile_mlps

DOCUMENT = 1024


class Held(NamedTuple):
    """What to count: a row of ``length`` tokens that ``size`` ranks share."""

    size: int
    length: int
    checkpointing: bool
    model: str = "qwen3"
    tiled: bool = False
    attention: str = "varlen"  # with sdpa, where rows are shared, documents one by one


class Counted(NamedTuple):
    """Bytes beside weights and their gradients: the most until the loss is known, and from then on."""

    forward: int
    backward: int


class Row(NamedTuple):
    """A prepared row."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    document_lengths: tuple[int, ...]


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operations have made and that are still held; of ``known`` none."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self._known = {one.untyped_storage().data_ptr() for one in known}
        self._sizes: dict[int, int] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and note what it made."""
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(one, Tensor):
                self._note(one.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        if storage._cdata not in self._sizes and storage.data_ptr() not in self._known:
            self._sizes[storage._cdata] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, storage: int) -> None:
        self.bytes -= self._sizes.pop(storage)


def count(held: Held, ranks: Ranks, folder: Path) -> Counted:
    """Return what this rank holds at most for a packed row of a tiny model in ``folder``, in float32."""
    model, _ = load_native(folder / f"{held.model}-2", torch.float32, implementation("varlen"))
    register(stand_in)
    with mock.patch.object(sequence_parallel, "varlen", stand_in):
        sequence_parallel.share_rows(model, held.attention, ranks)
    if held.checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if held.tiled:
        tile_mlps(model)
    documents = held.length // DOCUMENT
    row = Row([1] * held.length, [1] * held.length, [*range(DOCUMENT)] * documents, (DOCUMENT,) * documents)
    batch = sequence_parallel.slice_of(collate([(0, row)], 0, multiple=held.size), ranks)
    objective = Objective(LossHead(model.train(), "chunked"), "varlen", torch.float32, None)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    with Live([*model.parameters(), *(weight.grad for weight in model.parameters())]) as live:
        loss = objective(model, batch)
        forward, live.most = live.most, live.bytes
        loss.backward()
    return Counted(forward, live.most)


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        parts = zip(*(one.split(lengths, 2) for one in (q, k, v)), strict=True)
        out = torch.cat([_attend(*part) for part in parts], 2).transpose(1, 2).contiguous()
        ctx.lengths = lengths
        ctx.save_for_backward(q, k, v, out, q.new_zeros(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        *inputs, _, _ = ctx.saved_tensors
        grads, start = [torch.empty_like(one) for one in inputs], 0
        for length in ctx.lengths:
            parts = [one[:, :, start : start + length].detach().requires_grad_() for one in inputs]
            with torch.enable_grad():
                out = _attend(*parts).transpose(1, 2)
            found = torch.autograd.grad(out, parts, slopes[0][:, start : start + length])
            for grad, part in zip(grads, found, strict=True):
                grad[:, :, start : start + length] = part
            start += length
        return (*grads, None)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def stand_in(_module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, **options: Any) -> tuple[Tensor, None]:
    """Attend within documents, [1, heads, T, D] -> [1, T, heads, D]; saves q, k, v, the output and a sum per query."""
    lengths = options["cu_seq_lens_q"].diff().tolist()
    return _StandIn.apply(q, k, v, lengths), None  # type: ignore[no-untyped-call]
