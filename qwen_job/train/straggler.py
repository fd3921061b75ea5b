"""Finds a rank that is slow by itself for long. In a step all ranks wait for the slowest, so step times tell nothing.

- ``OwnTime``: seconds that a rank works before any collective: fetching its rows, and the forward pass
- ``Stragglers``: compares the ranks' own times, which travel with the numbers that the ranks exchange anyway

With ZeRO-3 the forward pass gathers weights, so only fetching is the rank's own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

Value = TypeVar("Value")
# A rank is slow when its median over 20 steps is 1.3 times that of the others and costs a tenth of a step, three times
# in a row.
WINDOW = 20
FACTOR = 1.3
_SHARE_OF_A_STEP = 0.1
WINDOWS = 3


class OwnTime:
    """Adds up this rank's own time in a step. On a GPU by events, read once the step has waited for the GPU anyway."""

    def __init__(self, device: torch.device, *, counts_forward: bool) -> None:
        self._on_gpu, self._counts = device.type == "cuda", counts_forward
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def of(self, work: Callable[[], Value]) -> Value:
        """Do work on the host and count it."""
        began = time.monotonic()
        result = work()
        self._seconds += time.monotonic() - began
        return result

    def of_forward(self, work: Callable[[], Value]) -> Value:
        """Do a forward pass and count it, unless its collectives make it everybody's time."""
        if not self._counts:
            return work()
        if not self._on_gpu:
            return self.of(work)
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        result = work()
        events[1].record()
        self._events.append(events)
        return result

    def take(self) -> int:
        """Return the microseconds since the last call. The GPU must have finished what was counted."""
        seconds = self._seconds + sum(first.elapsed_time(last) for first, last in self._events) / 1000
        self._seconds = 0.0
        self._events.clear()
        return int(seconds * 1e6)


class Slow(NamedTuple):
    """A rank that is slow, or no longer. ``seconds``: its median; ``ratio``: to ``others``, the median of theirs."""

    rank: int
    ratio: float
    seconds: float
    others: float
    is_slow: bool


class Stragglers:
    """Compares the ranks of a run; a lone rank has nobody to be compared with."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._steps: list[Sequence[float]] = []
        self._times_slow = [0] * world_size
        self._named: set[int] = set()

    def note(self, own: Sequence[float], step_seconds: float) -> list[Slow]:
        """Note every rank's own seconds in a step; returns the ranks to name: each once, until it has recovered."""
        if self._world_size < 2:
            return []
        self._steps.append(own)
        if len(self._steps) < WINDOW:
            return []
        medians = [statistics.median(ranks) for ranks in zip(*self._steps, strict=True)]
        self._steps.clear()
        return [found for rank in range(self._world_size) if (found := self._judge(rank, medians, step_seconds))]

    def _judge(self, rank: int, medians: Sequence[float], step_seconds: float) -> Slow | None:
        others = statistics.median([*medians[:rank], *medians[rank + 1 :]])
        mine = medians[rank]
        slow = mine > FACTOR * others and mine - others > _SHARE_OF_A_STEP * step_seconds
        self._times_slow[rank] = (
            min(WINDOWS, self._times_slow[rank] + 1) if slow else max(0, self._times_slow[rank] - 1)
        )
        found = Slow(rank, mine / max(others, 1e-6), mine, others, is_slow=slow)
        if rank not in self._named and self._times_slow[rank] == WINDOWS:
            self._named.add(rank)
            return found
        if rank in self._named and self._times_slow[rank] == 0:
            self._named.discard(rank)
            return found
        return None
