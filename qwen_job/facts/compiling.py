"""When ``torch_compile: auto`` compiles the model's layers: the rule of the plan, the flags and the trainer.

Measured on an H200: 17% more tokens/s (BENCHMARKS.md).
"""

from __future__ import annotations

# Triton, which makes the kernels, has no tensor-core path for older GPUs since 3.2 (its pull request 5066).
COMPILES_FROM = (8, 0)
# The kernels of linear attention are written in Triton, too.
LINEAR_KERNELS_FROM = COMPILES_FROM


MIXTURE = "a mixture of experts, whose routing is watched"
SHARED = "rows that GPUs share: what compiling gains there is not measured"
TILED = "a tiled MLP, whose tiles are computed again inside a layer's backward"


def why_eager(
    capability: tuple[int, int] | None, *, packed: bool, zero_stage: int, shared: bool, never: str = ""
) -> str:
    """Return why layers are not compiled by default; empty: they are.

    ``capability``: the GPU's compute capability, None on a CPU. ``shared``: GPUs share each row. ``never``: why such
    layers are compiled on none.
    """
    if capability is None:
        return "no GPU"
    if never:
        return never
    if capability < COMPILES_FROM:
        return f"compute capability {'.'.join(map(str, capability))} < {'.'.join(map(str, COMPILES_FROM))}"
    if not packed:
        return "rows that are not packed have many lengths, and each would be padded to the longest"
    if shared:
        return SHARED
    if zero_stage == 3:
        return "ZeRO-3 gathers weights inside a layer, which leaves little to compile"
    return ""
