"""A thread that ends a run that hangs, and names the ranks that hold it up.

Each rank's thread publishes its progress in the store. If this rank makes no progress for as long as its patience lasts
(patience.py; ``seconds`` at most, and while the model is loaded four times that, at least a minute), the thread writes
all stacks, compares the ranks, and ends the process with the exit code of ``Hang``. While another rank does something
that may take long (it evaluates, or saves), it gets ``seconds``, too. A rank that is dead or frozen publishes nothing
new, which names it, too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qwen_job.errors import Hang
from qwen_job.facts.sequence_parallel import rank_name
from qwen_job.train.patience import STEPPING, Patience

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LOADING = "loading"


class Standing(NamedTuple):
    """Where a rank was last seen; ``seen`` is unix time."""

    rank: int
    host: str
    step: int
    phase: str
    seen: float


class Watchdog:
    """Watches this rank; call :meth:`moved` at every progress, and :meth:`rest` when training is over."""

    def __init__(
        self, store: Store | None, rank: int, world_size: int, seconds: float, folder: Path, group_size: int = 1
    ) -> None:
        self._store = store
        self._rank = rank
        self._world_size, self._group_size = world_size, group_size
        self._seconds = seconds
        self._patience = Patience(seconds)
        self._folder = folder
        self._step, self._phase = 0, "starting"
        self._last = time.monotonic()
        self._resting = False
        self._thread: threading.Thread | None = None

    def moved(self, step: int, phase: str) -> None:
        """Note that ``step`` has reached ``phase``; the first call starts the thread."""
        now = time.monotonic()
        self._patience.passed(self._phase, phase, now - self._last)
        self._step, self._phase, self._last = step, phase, now
        if self._thread is None and self._seconds > 0:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def loading(self) -> None:
        """Start watching before the first step, with the longer limit for loading a model."""
        self.moved(0, LOADING)

    def rest(self) -> None:
        """Stop watching: what follows takes as long as one rank needs to write the whole model."""
        self._resting = True

    def _watch(self) -> None:
        pause = min(5.0, self._seconds / 10)
        while not self._resting:
            self._publish()
            before = time.monotonic()
            time.sleep(pause)
            # Time in which the whole process was suspended does not count.
            if (jump := time.monotonic() - before - pause) > pause:
                self._last += jump
            if time.monotonic() - self._last > (limit := self._limit(pause)) and not self._resting:
                self._end(pause, limit)

    def _limit(self, pause: float) -> float:
        """Return the seconds without progress that are too many now."""
        if self._phase == LOADING:
            return max(4 * self._seconds, 60.0)
        limit = self._patience.seconds(self._phase)
        if limit == self._seconds or time.monotonic() - self._last <= limit:
            return limit
        # Only now is it worth asking the store.
        busy = any(item.phase not in STEPPING and time.time() - item.seen < 2 * pause + 1 for item in self._standings())
        return self._seconds if busy else limit

    def host_of(self, rank: int) -> str:
        """Return the host of a rank, as far as it has published one."""
        return next((item.host for item in self._standings([rank])), "?")

    def _publish(self) -> None:
        if self._store is None:
            return
        standing = Standing(self._rank, socket.gethostname(), self._step, self._phase, time.time())
        try:
            self._store.set(f"qwen_job/alive/{self._rank}", json.dumps(standing))
        except RuntimeError:
            self._store = None  # rank 0's store is gone: there is nobody to compare with

    def _end(self, pause: float, limit: float) -> None:
        path = self._folder / f"stacks-rank-{self._rank}.txt"
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as out:
                faulthandler.dump_traceback(out, all_threads=True)
        except OSError as error:
            print(f"qwen-job: {path} could not be written: {error}", file=sys.stderr)
        standings = self._standings()
        text = hang_message(self._rank, limit, standings, self._world_size, 2 * pause + 1, self._group_size)
        text += self._patience.why(limit) if self._phase != LOADING else ""
        print(f"qwen-job: {text}; stacks in {path}", file=sys.stderr, flush=True)
        os._exit(Hang.exit_code)

    def _standings(self, ranks: Iterable[int] | None = None) -> list[Standing]:
        found = []
        for rank in range(self._world_size) if ranks is None else ranks:
            key = f"qwen_job/alive/{rank}"
            try:
                if self._store is not None and self._store.check([key]):
                    found.append(Standing(*json.loads(self._store.get(key))))
            except (RuntimeError, ValueError, TypeError):
                continue
        return found


def hang_message(
    rank: int, seconds: float, standings: list[Standing], world_size: int, fresh: float, group_size: int = 1
) -> str:
    """Name the ranks that are behind: those silent for ``fresh`` seconds, and those at the lowest step.

    ``group_size`` ranks share rows, and wait for one another in every layer.
    """
    now = time.time()
    silent = [item for item in standings if now - item.seen > fresh]
    missing = sorted(set(range(world_size)) - {item.rank for item in standings})
    slowest = min((item.step for item in standings), default=0)
    behind = [item for item in standings if item.step == slowest and item not in silent]
    parts = [f"{rank_name(rank, group_size)}: no progress for {seconds:.0f} s"]
    if silent:
        parts.append("no sign of life from " + _names(silent, group_size))
    if missing:
        parts.append("no contact yet with " + ", ".join(rank_name(one, group_size) for one in missing))
    if behind and len(behind) < len(standings):
        parts.append("behind the others: " + _names(behind, group_size))
    elif behind:
        parts.append(f"all ranks are at step {slowest}: " + _names(behind, group_size))
    return "; ".join(parts)


def _names(standings: list[Standing], group_size: int) -> str:
    shown = [
        f"{rank_name(item.rank, group_size)} on {item.host} (step {item.step}, {item.phase})" for item in standings[:8]
    ]
    return ", ".join(shown) + (f" and {len(standings) - 8} more" if len(standings) > 8 else "")
