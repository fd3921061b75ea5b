"""The numbers of GPUs that can share a row: what a size must divide. Shared by the plan and the trainer.

With Ulysses (arXiv:2309.14509) each GPU of a group has one slice of the row, and in attention all of the row for its
part of the heads.
"""

from __future__ import annotations

from typing import NamedTuple


class Divided(NamedTuple):
    """What is divided among the GPUs of a group: heads of queries and of keys and values, rows, and a node's GPUs.

    ``linear_heads``: those of linear attention, of keys and of values; empty where there is none.
    """

    heads: int
    key_value_heads: int
    row_length: int
    gpus_per_node: int
    linear_heads: tuple[int, ...] = ()


def rank_name(rank: int, size: int) -> str:
    """Return a rank as messages name it, with its group where ``size`` ranks share rows."""
    return f"rank {rank}" if size == 1 else f"rank {rank} of group {rank // size}"


def fault(size: int, divided: Divided) -> str:
    """Return why ``size`` GPUs cannot share a row, or ""."""
    heads, keys, length, gpus, linear = divided
    if gpus % size:
        why = f"{size} does not divide the {gpus} GPUs of a node" if gpus > 1 else "a node has 1 GPU"
        return f"{why}, and a group must be inside one"
    if heads % size:
        return f"{size} does not divide the model's {heads} attention heads"
    if keys % size and size % keys:
        return f"{size} neither divides the model's {keys} key-value heads nor is a multiple of them"
    for count in linear:
        if count % size:
            return f"{size} does not divide the {count} heads of the model's linear attention"
    if length % size:
        return f"{size} does not divide rows of {length} tokens"
    return ""


def sizes(divided: Divided) -> list[int]:
    """Return the sizes that work, 1 the first."""
    return [size for size in range(1, divided.gpus_per_node + 1) if not fault(size, divided)]


def refusal(size: int, divided: Divided) -> str:
    """Return why ``size`` does not work and which sizes do, or ""."""
    why = fault(size, divided)
    return why and f"{why}; sizes that work here: {', '.join(map(str, sizes(divided)))}"
