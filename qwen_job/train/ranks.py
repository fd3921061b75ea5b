"""What the ranks of a run exchange with one another; a lone rank needs no process group."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


class Ranks(NamedTuple):
    """This rank among the others; every method but ``own_slice`` is a collective of all ranks.

    Each ``sequence_parallel_size`` consecutive ranks are a group that shares every row: see sequence_parallel.py.
    """

    rank: int
    world_size: int
    device: torch.device
    sequence_parallel_size: int = 1

    @property
    def groups(self) -> int:
        """The number of groups: of rows that are computed at once."""
        return self.world_size // self.sequence_parallel_size

    @property
    def group(self) -> int:
        """The number of this rank's group, from 0."""
        return self.rank // self.sequence_parallel_size

    @property
    def slice_number(self) -> int:
        """Which slice of its group's rows this rank computes, from 0."""
        return self.rank % self.sequence_parallel_size

    @property
    def counts_rows(self) -> bool:
        """Whether this rank is the one of its group whose rows are counted."""
        return self.slice_number == 0

    def own_slice(self, row: torch.Tensor) -> torch.Tensor:
        """Return this rank's slice of ``row`` [T]: [T / sequence_parallel_size]. No collective."""
        length = len(row) // self.sequence_parallel_size
        return row[self.slice_number * length :][:length]

    def gather_numbers(self, numbers: list[int]) -> torch.Tensor:
        """Return every rank's numbers: [world_size, len(numbers)], int64 on the CPU."""
        if self.world_size == 1:
            return torch.tensor([numbers], dtype=torch.int64)
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def gather(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank."""
        if self.world_size == 1:
            return [value]
        everyone: list[Value] = [value] * self.world_size
        dist.all_gather_object(everyone, value)
        return everyone

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all ranks, in place; returns it."""
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def agree(self, verdict: torch.Tensor) -> bool:
        """Tell whether a boolean scalar is true on every rank."""
        number = verdict.to(torch.int32)
        if self.world_size > 1:
            dist.all_reduce(number, op=dist.ReduceOp.MIN)
        return bool(number.item())

    def from_first(self, value: Value) -> Value:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
