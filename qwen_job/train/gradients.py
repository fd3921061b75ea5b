"""The norm of a step's gradients where DeepSpeed's own optimizers do not measure it."""

from __future__ import annotations

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
    """Return the 2-norm of all gradients of ``model``, in float32; 0 where it has none."""
    slopes = [parameter.grad.detach() for parameter in model.parameters() if parameter.grad is not None]
    if not slopes:
        return 0.0
    norms = torch._foreach_norm(slopes, 2, dtype=torch.float32)
    return float(torch.linalg.vector_norm(torch.stack(list(norms))))
