"""Two of transformers' formulas with fewer passes over memory, for GPUs, as a compiler would do it.

- ``use_lean_kernels``: gives a loaded model both;  ``use_lean_rotation``: the rotation alone, or takes it away
- ``stock_kernels``: transformers' own again, within a block
- ``rotate``: the rotary embedding, in place of transformers' ``apply_rotary_pos_emb``
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own habit)

_ROTATION = "apply_rotary_pos_emb"
# The modules of transformers whose rotation was replaced, and the original.
_stock: dict[ModuleType, Callable[..., Any]] = {}


def use_lean_kernels(model: Any) -> None:
    """Give a model of transformers torch's own RMSNorm kernel and our rotation."""
    for module in model.modules():
        # Those of hybrids multiply by 1 + weight: that sum needs float32, and their own forward.
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_rms_norm, module)
    use_lean_rotation(model)


def use_lean_rotation(model: Any, *, wanted: bool = True) -> None:
    """Give a model our rotation, or transformers' own again: a compiler fuses that, and cannot look into ours."""
    home = sys.modules[type(model).__module__]
    if wanted and hasattr(home, _ROTATION):
        _stock.setdefault(home, getattr(home, _ROTATION))
        setattr(home, _ROTATION, rotate)
    elif home in _stock:
        setattr(home, _ROTATION, _stock.pop(home))


@contextmanager
def stock_kernels() -> Iterator[None]:
    """Restore transformers' own rotation within the block, so that a check does not use what it checks."""
    for home, function in _stock.items():
        setattr(home, _ROTATION, function)
    try:
        yield
    finally:
        for home in _stock:
            setattr(home, _ROTATION, rotate)


def _rms_norm(module: Any, hidden: Tensor) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotate query and key, each [B, heads, S, D], by ``cos`` and ``sin`` [B, S, R], whose halves are equal.

    The D - R dimensions after the first R stay as they are (R is D but in hybrids). Results keep the memory layout of
    the inputs, so that neither attention nor backward copies them.
    """
    half = cos.shape[-1] // 2
    c, s = (part[..., :half].unsqueeze(unsqueeze_dim) for part in (cos, sin))
    turned: tuple[Tensor, Tensor] = (_Rotate.apply(q, c, s), _Rotate.apply(k, c, s))  # type: ignore[no-untyped-call]
    return turned


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(slopes[0], cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    out, half = torch.empty_like(x), cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    ours, other = out[..., :half], out[..., half : 2 * half]
    out[..., 2 * half :] = x[..., 2 * half :]
    torch.mul(first, cos, out=ours).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=other).addcmul_(first, sin, value=direction)
    return out
