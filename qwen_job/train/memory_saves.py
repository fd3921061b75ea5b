"""How often a run keeps its state in memory, and the copies that nodes make of each other's.

The state is only read, so nothing here changes what is learned.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch.distributed as dist

from qwen_job.facts.choices import MemorySaveSteps, states_of
from qwen_job.run import states as memory
from qwen_job.text import gib_or_mib
from qwen_job.train.checkpoints import Saved, available_memory
from qwen_job.train.media import Memory
from qwen_job.train.neighbour import fetch
from qwen_job.train.ranks import Ranks
from qwen_job.train.remembered import Neighbourhood
from qwen_job.train.save_interval import NEWEST, History, steps_between

# The first step of an attempt is slower than the others.
_WARM_STEPS = 2


class MemorySaves:
    """Decides when a state is due, and has the neighbour's copied once it is complete.

    ``every``: train.memory_save_steps; ``kept``: the step that the run resumed from, if its state is in memory;
    ``history``: that of earlier attempts, of which rank 0's counts. A collective of all ranks builds it.
    """

    def __init__(
        self,
        around: Neighbourhood,
        every: MemorySaveSteps,
        ranks: Ranks,
        kept: int | None = None,
        history: History | None = None,
    ) -> None:
        split = around.expert_parallel_size
        self.medium = Memory(around.home, around.place.local_rank, around.ranks, around.zero_stage, split)
        self._around, self._ranks, self._every = around, ranks, every
        self._history, self._began = history or History(), time.monotonic()
        self._pauses: deque[float] = deque(maxlen=NEWEST)
        known = self._history if self._history.faults else History()
        self._interval = self._decide(known.pause, known.step)
        self._last: int | None = kept
        self._steps = 0
        self._seconds = 0.0
        self._measured = False
        self._pool = ThreadPoolExecutor(1, "neighbour")
        self._copy: Future[None] | None = None
        self._complained = False
        if kept is not None:
            self.medium.kept = kept
            self._begin_copy(kept)

    @property
    def copied(self) -> bool:
        """Whether this rank copies nothing now."""
        return self._copy is None or self._copy.done()

    @property
    def reason(self) -> str:
        """Why rank 0 chose the interval that this attempt begins with; "" where no fault has decided it."""
        if self._every != "auto" or not self._history.faults or not self._history.step:
            return ""
        why = self._history.reason(time.monotonic() - self._began)
        return f"a state is kept in memory every {self._interval} steps or so: {why}"

    def due(self, step: int, seconds: float) -> bool:
        """Tell whether the state after ``step``, which took ``seconds``, is to be kept; the same on all ranks."""
        self._steps += 1
        self._seconds += seconds
        if self._last == step:
            return False
        if self._every != "auto":
            return step // self._every > (self._last or 0) // self._every
        return self._steps >= _WARM_STEPS and (self._last is None or step - self._last >= self._interval)

    def settle(self) -> None:
        """Wait until every node has its copies. A collective of all ranks."""
        if self._copy is not None:
            self._copy.result()
        dist.barrier()

    def finish(self, saved: Saved) -> str | None:
        """Note a complete state, and copy the neighbour's; returns what to report. A collective of all ranks."""
        before, self.medium.kept = self.medium.kept, saved.step
        self._last = saved.step
        self._pauses.append(saved.pause_seconds)
        seconds = self._seconds / max(1, self._steps)
        self._interval = self._decide(statistics.median(self._pauses), seconds)
        self._steps, self._seconds = _WARM_STEPS, _WARM_STEPS * seconds
        self._begin_copy(saved.step, before)
        if self._measured:
            return None
        self._measured = True
        count = self._around.nodes
        copy, nodes = (", each with a copy on its neighbour", f"{count} nodes") if count > 1 else ("", "this node")
        return (
            f"step {saved.step} is kept in memory ({gib_or_mib(saved.bytes)} on {nodes}{copy}; training paused for "
            f"{saved.pause_seconds:.2f} s); from now on every {self._interval} steps or so"
        )

    def _decide(self, pause: float, seconds: float) -> int:
        """Return rank 0's interval, in steps of ``seconds``. A collective of all ranks."""
        if self._every != "auto":
            return self._every
        between = self._history.between_faults(time.monotonic() - self._began)
        return self._ranks.from_first(steps_between(pause, seconds, between) if pause and seconds else _WARM_STEPS)

    def shortage(self, saved: Saved) -> str:
        """Return why further states do not fit, or "". A collective of all ranks."""
        mine = ""
        if self.medium.leads and not self._measured:
            size = sum(state.bytes for state in memory.states([self.medium.home]) if state.step == saved.step)
            space = os.statvfs(self.medium.home)
            free = min(space.f_bavail * space.f_frsize, available_memory())
            wanted = size * (states_of(self._around.nodes) - 1)
            if free < wanted:
                mine = f"node {self._around.node} needs {gib_or_mib(wanted)} more, and has {gib_or_mib(free)}"
        return next(filter(None, self._ranks.gather(mine)), "")

    def stop(self) -> None:
        """Keep nothing any more, and make room."""
        if self._copy is not None:
            self._copy.result()
        if self.medium.leads:
            memory.prune(self.medium.home, -1)

    def _begin_copy(self, step: int, keep: int | None = None) -> None:
        around = self._around
        source = (around.node - 1) % around.nodes
        address = around.offers[source].address
        if not around.leads or around.nodes == 1 or address is None:
            return

        def copy() -> None:
            if any((s.node, s.step) == (source, step) for s in memory.states([around.home])):
                return
            reason = fetch(address, around.token, source, step, around.home, keep)
            if reason and not self._complained:
                self._complained = True
                text = f"the state of node {source} could not be copied to node {around.node}"
                print(f"qwen-job: {text}: {reason}", file=sys.stderr, flush=True)

        self._copy = self._pool.submit(copy)
