"""The norm of a step's gradients, also where DeepSpeed's own optimizers do not measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def measure_gradients(engine: Any) -> None:
    """Make ``engine.get_global_grad_norm()`` a number where a plain optimizer steps (ZeRO 0 in fp32, among others).

    Taken right before clipping and the update, of gradients that all ranks share by then.
    """
    if hasattr(engine.optimizer, "_global_grad_norm"):
        return
    step = engine._take_model_step

    def measured(*arguments: Any, **options: Any) -> Any:
        engine._global_grad_norm = gradient_norm(engine.module)
        return step(*arguments, **options)

    engine._take_model_step = measured


def gradient_norm(model: Any) -> float:
    """Return the 2-norm of all gradients of ``model``; 0 where it has none."""
    slopes = [parameter.grad.detach() for parameter in model.parameters() if parameter.grad is not None]
    return float(squared_norm(slopes).sqrt()) if slopes else 0.0


def squared_norm(slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the squares of all ``slopes``, a float32 scalar on their device, after one pass over them.

    A GPU adds up in many short sums, which float32 is exact enough for; a CPU in one long sum, which needs float64.
    """
    wide = torch.float32 if slopes[0].is_cuda else torch.float64
    norms = torch._foreach_norm(list(slopes), 2, dtype=wide)
    return torch.stack(list(norms)).square().sum().float()
