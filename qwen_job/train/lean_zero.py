"""DeepSpeed's ZeRO with fewer passes over the gradients, and with ZeRO-1 and ZeRO-2 one wait of the host in a step.

- ``use_lean_zero``: changes an optimizer that DeepSpeed has built; with ZeRO-1 and ZeRO-2, its gradients are sums over
  ranks from then on
- ``measure_partitions``: with ZeRO-3, one pass measures the gradients
- ``OneNorm``: on any number of ranks, one pass measures the gradients and finds what is not finite in them
- ``InPlace``: on one rank, gradients add up where autograd leaves them, and become float32 and clipped in one pass

Weights, optimizer state and checkpoints are DeepSpeed's own. What differs are the last digits of the norm, and so of
clipped gradients: it is one sum, on a GPU in float32 over the gradients as they are, where DeepSpeed first converts
each of them to float64. Gradients whose norm exceeds 1.8e19, the root of float32's largest number, count as not finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qwen_job.train.gradients import squared_norm


def use_lean_zero(optimizer: Any) -> None:
    """Change DeepSpeed's ``optimizer``, if it is that of a ZeRO stage; leave any other as it is."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if type(optimizer) is DeepSpeedZeroOptimizer_Stage3:
        measure_partitions(optimizer)
    if type(optimizer) is not DeepSpeedZeroOptimizer:
        return
    if optimizer.gradient_predivide_factor == 1.0:
        optimizer.gradient_average = False  # the loss is divided instead: one number, not every gradient
    scales_itself = optimizer.torch_autocast_gradscaler is not None
    if optimizer.cpu_offload or scales_itself or not optimizer.compute_grad_norm:
        return
    norm = OneNorm(optimizer)
    padded = any(any(paddings) for paddings in optimizer.round_robin_bit16_padding)
    same = optimizer.gradient_accumulation_dtype == optimizer.dtype
    wide = optimizer.master_weights_and_grads_dtype == torch.float32
    alone = torch.distributed.get_world_size(optimizer.dp_process_group) == 1
    if alone and same and wide and not padded:
        InPlace(optimizer, norm)


def measure_partitions(optimizer: Any) -> None:
    """Measure ZeRO-3's gradients in one pass and one collective: DeepSpeed has both for each of its groups, in float64.

    Where the optimizer is in host memory, or ranks share parameters in another way, DeepSpeed's own way stays.
    """
    weights = [weight for group in optimizer.fp16_groups for weight in group]
    split = all(optimizer._get_param_partition_group(weight) is optimizer.dp_process_group for weight in weights)
    if optimizer.offload_optimizer or optimizer.use_muon or optimizer.model_parallel_group is not None or not split:
        return

    def norms() -> list[Tensor]:
        squares = squared_norm([slope for group in optimizer.averaged_gradients.values() for slope in group])
        torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
        return [squares.sqrt()]

    optimizer._get_norm_groups = norms


class OneNorm:
    """Measures the gradients of a step once: DeepSpeed would read them twice more to look for what is not finite."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._norm = 0.0
        optimizer.check_overflow = _left_to_the_norm
        optimizer.scaled_global_norm = self._measure
        optimizer.unscale_and_clip_grads = self._unscale

    def factor(self) -> float:
        """Return what the step's gradients are to be multiplied with: one over loss scale and clipping."""
        optimizer = self._optimizer
        if not optimizer.clip_grad:
            return float(1.0 / torch.tensor(optimizer.loss_scale, dtype=torch.float32))
        # In float32, as DeepSpeed computes it on the device.
        norm = torch.tensor(self._norm, dtype=torch.float32)
        clip = torch.clamp((norm / optimizer.loss_scale + 1e-6) / optimizer.clip_grad, min=1.0)
        return float(1.0 / (clip * optimizer.loss_scale))

    def _measure(self, norm_type: int = 2) -> float:
        """Return the norm of all ranks' gradients, infinite where one is not finite. The step's only wait for it."""
        optimizer = self._optimizer
        slopes = [slope for group in optimizer.averaged_gradients.values() for slope in group]
        squares = squared_norm(slopes)
        torch.distributed.all_reduce(squares, group=optimizer.dp_process_group)
        norm = squares.sqrt().item()
        self._norm = norm if norm < float("inf") else float("inf")
        return self._norm

    def _unscale(self, slopes: list[Tensor], _norm: float) -> None:
        if (factor := self.factor()) != 1.0:
            torch._foreach_mul_(slopes, factor)


def _left_to_the_norm(*, partition_gradients: bool) -> None:
    """Replace the search for what is not finite: DeepSpeed's step() also looks at the norm."""


class InPlace:
    """Leaves a lone rank's gradients on the parameters, where autograd adds up those of a step's micro-batches.

    DeepSpeed copies every gradient into a bucket, copies that into a partition and adds it to what it has: the same
    sums, in the same precision, with three times the memory traffic.
    """

    def __init__(self, optimizer: Any, norm: OneNorm) -> None:
        self._optimizer, self._norm = optimizer, norm
        for hook in optimizer._grad_acc_hooks:
            hook.remove()
        optimizer._grad_acc_hooks.clear()
        optimizer.overlapping_partition_gradients_reduce_epilogue = self._collect  # ZeRO-2
        optimizer.reduce_gradients = self._collect  # ZeRO-1
        optimizer._get_preflattened_grad_partition = self._flatten
        optimizer.unscale_and_clip_grads = _done_by_flatten

    def _collect(self, pipeline_parallel: bool = False) -> None:
        """Hand a step's gradients to DeepSpeed after its last micro-batch."""
        optimizer = self._optimizer
        if optimizer.is_gradient_accumulation_boundary():
            for index, group in enumerate(optimizer.bit16_groups):
                optimizer.averaged_gradients[index] = [
                    torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in group
                ]

    def _flatten(self, index: int) -> Tensor:
        """Return a group's gradients as DeepSpeed's optimizer takes them: flat, float32, unscaled and clipped."""
        optimizer, factor = self._optimizer, self._norm.factor()
        master = optimizer.single_partition_of_fp32_groups[index]
        flat = torch.empty_like(master, requires_grad=False)
        slopes = optimizer.averaged_gradients[index]
        sizes = [slope.numel() for slope in slopes]
        *parts, rest = flat.split([*sizes, len(flat) - sum(sizes)])
        rest.zero_()
        if factor == 1.0:
            torch._foreach_copy_(parts, [slope.reshape(-1) for slope in slopes])
        else:
            # A tensor with a dimension makes the product a float32 one; a number would leave it in 16 bits.
            scale = torch.full((1,), factor, dtype=torch.float32, device=flat.device)
            for part, slope in zip(parts, slopes, strict=True):
                torch.mul(slope.reshape(-1), scale, out=part)
        return flat


def _done_by_flatten(_slopes: list[Tensor], _norm: float) -> None:
    """Replace the clipping, which ``_flatten`` has done."""
