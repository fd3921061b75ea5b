"""The summed cross-entropy of a micro-batch, without ever holding all logits where a fused kernel is chosen.

The head computes it: the loss is taken inside the output projection's own forward, so that ZeRO-3 gathers the
projection's weight for it as for any other module, and only positions that have a target are projected.

- ``LossHead``: hooks a model's output projection
- ``Objective``: a batch to its summed loss
- ``chunked``: our own fused loss, for torch without ``linear_cross_entropy``
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own habit)

from qwen_job.train.attention import inputs_for
from qwen_job.train.batches import Batch

# Logits of one chunk: 2048 x 151,936 x 4 bytes are 1.2 GB.
_CHUNK_ROWS = 2048
# Products of 16-bit matrices in float32: torch 2.8 and later.
_WIDE_PRODUCTS = "dtype_out" in torch.ops.aten.addmm.overloads()

FusedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Objective:
    """What is minimised: the summed cross-entropy of a batch's trained tokens."""

    def __init__(
        self, head: LossHead, attention: str, dtype: torch.dtype, window: int | None, *, linear: bool = False
    ) -> None:
        self._head, self._attention, self._dtype = head, attention, dtype
        self._window, self._linear = window, linear

    def __call__(self, engine: Any, batch: Batch) -> Tensor:
        """Return the sum over the trained tokens of ``batch``, which is on the engine's device, as float32."""
        inputs = inputs_for(batch, self._attention, self._dtype, self._window, linear=self._linear)
        return self._head.loss(engine, inputs, batch["targets"], batch["chosen"])


class LossHead:
    """Makes ``model(...)`` return the loss instead of logits while targets are set.

    ``kind`` is one of torch, chunked, liger, none, as in train.yaml.
    """

    def __init__(self, model: Any, kind: str) -> None:
        self._module = model.get_output_embeddings()
        self._plain: Callable[[Tensor], Tensor] = self._module.forward
        self._loss = fused_loss(kind)
        self._targets: tuple[Tensor, Tensor] | None = None
        self._module.forward = self._forward

    def loss(self, engine: Any, inputs: dict[str, Any], targets: Tensor, chosen: Tensor) -> Tensor:
        """Return the sum of the cross-entropies at the ``chosen`` flat positions of ``targets``, as float32."""
        self._targets = (targets.reshape(-1)[chosen], chosen)
        try:
            total: Tensor = engine(**inputs, use_cache=False).logits
        finally:
            self._targets = None
        return total

    def _forward(self, hidden: Tensor) -> Tensor:
        if self._targets is None:
            return self._plain(hidden)
        targets, chosen = self._targets
        # Not by [chosen], whose gradient sorts the positions first.
        wanted = hidden.reshape(-1, hidden.shape[-1]).index_select(0, chosen)
        return self._loss(wanted, self._module.weight, targets)


def fused_loss(kind: str) -> FusedLoss:
    """Return ``loss(hidden [T, H], weight [V, H], targets [T]) -> summed cross-entropy, float32``."""
    return {"none": _plain, "chunked": chunked, "torch": _torch, "liger": _liger}[kind]


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def exact_kind(kind: str, precision: str) -> str:
    """Return the kernel to use: torch's own adds up the loss in the inputs' 16 bits and is 1% off there, ours not."""
    return "chunked" if kind == "torch" and precision != "fp32" else kind


def _torch(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if len(targets) == 0:
        return _plain(hidden, weight, targets)
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options).float()


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if len(targets) == 0:
        return _plain(hidden, weight, targets)
    from liger_kernel.transformers.functional import (
        liger_fused_linear_cross_entropy,
    )

    total: Tensor = liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="sum").float()
    return total


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Compute loss and gradients chunk by chunk in the forward pass: memory is one chunk of logits."""
    total: Tensor = _Chunked.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return total


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_weight: Tensor | None = None
        for start in range(0, len(hidden), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            loss, slope = _chunk_step(F.linear(hidden[part], weight), targets[part, None])
            total += loss
            if grad_hidden is not None:
                torch.mm(slope, weight, out=grad_hidden[part])
                grad_weight = _add_product(grad_weight, slope.T, hidden[part])
            del slope  # before the next chunk's logits
        if wanted and grad_weight is None:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.grads, ctx.dtype = (grad_hidden, grad_weight), weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.grads
        ctx.grads = None
        # Of one dimension, so that products are taken in float32 and rounded once: the factor itself would be off by
        # up to 0.4% in 16 bits, and in fp16 the sum over many tokens could be infinite before it is divided.
        slope = slopes[0].reshape(1)
        weight_slope = grad_weight if grad_weight.dtype == ctx.dtype else torch.empty_like(grad_weight, dtype=ctx.dtype)
        return (
            torch.mul(grad_hidden, slope, out=grad_hidden),
            torch.mul(grad_weight, slope, out=weight_slope),
            None,
        )


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return ``total``, if there is one, plus ``left @ right``, in float32.

    On a GPU the sum is taken inside the product, which stays in float32 there.
    """
    wide = left.is_cuda and left.dtype != torch.float32 and _WIDE_PRODUCTS
    if total is None:
        return torch.mm(left, right, out_dtype=torch.float32) if wide else (left @ right).float()
    if wide:
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    return total.add_(left @ right)


def _softmax_step(logits: Tensor, picked: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of logits [T, V] and its slope softmax - one_hot; float32 inside.

    Two passes of torch's own kernels over 16-bit logits: a float32 slope would be four times the memory traffic.
    """
    chosen = F.log_softmax(logits, dim=-1, dtype=torch.float32).gather(1, picked)
    slope = F.softmax(logits, dim=-1)
    slope.scatter_(1, picked, torch.expm1(chosen).to(slope.dtype))
    return -chosen.sum(), slope


_chunk_step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _softmax_step


def compile_chunks(*, wanted: bool = True) -> None:
    """Fuse the passes over a chunk's logits into one kernel: they cost more memory traffic than the products."""
    global _chunk_step
    _chunk_step = torch.compile(_softmax_step, dynamic=True) if wanted else _softmax_step
