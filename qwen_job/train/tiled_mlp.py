"""The feed-forward network of a layer, computed for a tile of tokens at a time: its wide values never exist for a row.

- ``tile_mlps``: gives a loaded model tiled networks
- ``tiled``: the network of a whole row, by tiles, forward and backward

Backward computes each tile again, adds up the gradients of the weights in float32, and hands them to autograd once:
to ZeRO's hooks a tiled network looks like any other. DeepSpeed's TiledMLP runs a backward pass per tile into the
parameters instead, and sums in their own precision.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from qwen_job.errors import JobError
from qwen_job.facts.choices import TILE_TOKENS
from qwen_job.train.experts import routers_of

_PARTS = ("gate_proj", "up_proj", "down_proj")


def tile_mlps(model: Any, *, tokens: int = TILE_TOKENS, gathers: bool = False) -> None:
    """Let the dense feed-forward networks of ``model`` work on ``tokens`` tokens at a time.

    ``gathers``: ZeRO-3 gathers weights; a network's are then gathered once for all of its tiles.

    Raises:
        JobError: the model is a mixture of experts, or of a family whose networks are not known.
    """
    found = [module for module in model.modules() if all(hasattr(module, part) for part in _PARTS)]
    if routers_of(model) or not found:
        kind = model.config.get_text_config().model_type
        raise JobError(f"train.tiled_mlp: true: {kind} has experts or no dense feed-forward networks; write false")
    for module in found:
        module.forward = MethodType(_by_tiles(type(module).forward, tokens), module)
    if gathers:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, list({type(module): None for module in found}))


def _by_tiles(forward: Callable[[Any, Tensor], Tensor], tokens: int) -> Callable[[Any, Tensor], Tensor]:
    def by_tiles(module: Any, hidden: Tensor) -> Tensor:
        if hidden.numel() // hidden.shape[-1] <= tokens:
            return forward(module, hidden)
        return tiled(lambda part: forward(module, part), hidden, list(module.parameters()), tokens)

    return by_tiles


def tiled(compute: Callable[[Tensor], Tensor], hidden: Tensor, weights: list[Tensor], tokens: int) -> Tensor:
    """Return ``compute(hidden)`` [..., H], of which each token needs only its own [H] and ``weights``.

    The result is written after autograd has noted ``hidden``: a checkpoint that computes a layer again ends there, and
    the last forward pass through the network, which backward repeats by tiles, is not done once more.
    """
    out: Tensor = _Tiled.apply(hidden, compute, tokens, *weights)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for part, whole in zip(_tiles(hidden, tokens), _tiles(out.detach(), tokens), strict=True):
            whole.copy_(compute(part))
    return out


def _tiles(whole: Tensor, tokens: int) -> tuple[Tensor, ...]:
    return torch.split(whole.reshape(-1, whole.shape[-1]), tokens)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, compute: Any, tokens: int, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        # Not saved, because ZeRO-3 empties and fills them again in between.
        ctx.compute, ctx.tokens, ctx.weights = compute, tokens, weights
        return torch.empty_like(hidden, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        hidden = ctx.saved_tensors[0].contiguous()
        sums: list[Any] = [None] * len(ctx.weights)
        grad = torch.empty_like(hidden)
        parts = (_tiles(one, ctx.tokens) for one in (hidden, slopes[0].contiguous(), grad))
        for part, slope, into in zip(*parts, strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.compute(part)
            found: list[Any] = list(torch.autograd.grad(out, [part, *ctx.weights], slope))
            mine = found.pop(0)
            into.copy_(mine)
            del out, mine
            for place in range(len(sums)):
                sums[place] = _added(sums[place], found[place])
                found[place] = None
        weights = (total.to(weight.dtype) for total, weight in zip(sums, ctx.weights, strict=True))
        return (grad, None, None, *weights)


def _added(total: Any, part: Any) -> Tensor:
    return part.float() if total is None else total.add_(part)  # type: ignore[no-any-return]
