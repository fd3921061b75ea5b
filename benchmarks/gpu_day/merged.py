"""One product where several weights share an input: q, k and v, and gate and up. The model keeps its own weights.

ZeRO-1 and ZeRO-2 hold the 16-bit weights in one buffer, in the order of the model, so that those of a product are one
view of it: nothing is copied, and state dict, checkpoint and export have the names and numbers that they had. Weights
that are not beside each other are copied into one first. ZeRO-3 gathers weights for their modules only: not for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own habit)

# How often weights were copied since it was cleared.
copied: list[int] = []


def side_by_side(weights: Sequence[Tensor]) -> bool:
    """Tell whether matrices of equal width follow each other in one buffer."""
    first = weights[0]
    after = first.data_ptr()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or weight.data_ptr() != after or weight.dtype != first.dtype or not weight.is_contiguous():
            return False
        after += weight.numel() * weight.element_size()
    return True


def whole(weights: Sequence[Tensor]) -> Tensor:
    """Return the matrices [N, H] below each other, [sum of N, H]: a view of them if they are side by side."""
    if not side_by_side(weights):
        copied.append(len(weights))
        return torch.cat(list(weights))
    rows, width = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    return weights[0].as_strided((rows, width), (width, 1))


# Opaque to a compiler, which would have to know that an input reaches beyond its own end.
@torch.library.custom_op("gpu_day::one_product", mutates_args=())
def one_product(hidden: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return ``hidden`` [..., H] times all weights [N, H], [..., sum of N]."""
    return F.linear(hidden, whole(weights))


@torch.library.custom_op("gpu_day::one_product_backward", mutates_args=())
def one_product_backward(slope: Tensor, hidden: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``hidden`` and of all weights, below each other."""
    flat = slope.reshape(-1, slope.shape[-1])
    return (flat @ whole(weights)).view(hidden.shape), flat.T @ hidden.reshape(-1, hidden.shape[-1])


@one_product.register_fake
def _(hidden: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return hidden.new_empty(*hidden.shape[:-1], sum(weight.shape[0] for weight in weights))


@one_product_backward.register_fake
def _(slope: Tensor, hidden: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(hidden), hidden.new_empty(slope.shape[-1], hidden.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Sequence[Tensor]], output: Tensor) -> None:  # noqa: ARG001 (torch's interface)
    hidden, weights = inputs
    ctx.save_for_backward(hidden, *weights)


def _backward(ctx: Any, slope: Tensor) -> tuple[Tensor, list[Tensor]]:
    hidden, *weights = ctx.saved_tensors
    of_hidden, of_weights = one_product_backward(slope, hidden, weights)
    return of_hidden, list(of_weights.split([weight.shape[0] for weight in weights]))


one_product.register_autograd(_backward, setup_context=_keep)


def _products(hidden: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """Return what ``layers`` make of ``hidden``."""
    sizes = [layer.weight.shape[0] for layer in layers]
    out: Tensor = one_product(hidden, [layer.weight for layer in layers])
    if layers[0].bias is not None:
        out = out + torch.cat([layer.bias for layer in layers])
    parts: tuple[Tensor, ...] = out.split(sizes, dim=-1)
    return parts


def feed_forward(self: Any, hidden: Tensor) -> Tensor:
    """Take the place of ``Qwen2MLP.forward``."""
    gate, up = _products(hidden, self.gate_proj, self.up_proj)
    down: Tensor = self.down_proj(self.act_fn(gate) * up)
    return down


def attend(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Any,
    past_key_values: Any = None,  # noqa: ARG001 (training has no cache)
    **boundaries: Any,
) -> tuple[Tensor, None]:
    """Take the place of ``Qwen2Attention.forward`` in training."""
    home = sys.modules[type(self).__module__]
    shape = hidden_states.shape[:-1]
    products = _products(hidden_states, self.q_proj, self.k_proj, self.v_proj)
    query, key, value = (part.view(*shape, -1, self.head_dim).transpose(1, 2) for part in products)
    query, key = home.apply_rotary_pos_emb(query, key, *position_embeddings)
    kind = self.config._attn_implementation
    interface = home.ALL_ATTENTION_FUNCTIONS.get_interface(kind, home.eager_attention_forward)
    options = {"dropout": 0.0, "scaling": self.scaling, "sliding_window": self.sliding_window, **boundaries}
    out, _ = interface(self, query, key, value, attention_mask, **options)
    return self.o_proj(out.reshape(*shape, -1).contiguous()), None


@contextmanager
def merged_feed_forward() -> Iterator[None]:
    """Multiply by gate and up in one product."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    with mock.patch.object(Qwen2MLP, "forward", feed_forward):
        yield


@contextmanager
def merged_layers() -> Iterator[None]:
    """Multiply by q, k and v in one product, and by gate and up in another."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

    with merged_feed_forward(), mock.patch.object(Qwen2Attention, "forward", attend):
        yield
