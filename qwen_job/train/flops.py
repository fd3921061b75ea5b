"""What is counted in a step, and the model FLOPs utilisation that follows from it. Nothing here imports torch."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """What the number of floating-point operations depends on."""

    layers: int  # with attention over all earlier tokens
    hidden: int
    body_parameters: int  # matrices of all layers, without embedding and head
    head_parameters: int


class StepTotals(NamedTuple):
    """Sums over all ranks of one step; ``memory`` is the peak of the worst rank so far, in bytes."""

    targets: int  # positions that predict a token
    tokens: int  # real tokens, pads not counted
    pairs: int  # sum of s_i^2 over documents of s_i tokens
    memory: int


def step_flops(shape: Shape, totals: StepTotals) -> float:
    """Return the floating-point operations of one step's forward and backward passes.

    6 N per token and 6 L h s for causal attention, s being sum(s_i^2) / sum(s_i) for packed rows; the head counts
    for the tokens that are projected. The input embedding is a lookup, and recomputation is not counted.
    """
    body = 6 * shape.body_parameters * totals.tokens
    head = 6 * shape.head_parameters * totals.targets
    return float(body + head + 6 * shape.layers * shape.hidden * totals.pairs)


def utilisation(flops: float, seconds: float, peak_tflops: float | None, devices: int) -> float | None:
    """Return the MFU as a fraction; None where the device's peak is unknown, it is never guessed."""
    return None if peak_tflops is None else flops / (seconds * peak_tflops * 1e12 * devices)
