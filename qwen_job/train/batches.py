"""From prepared rows to the batches of every optimizer step, the same whatever the number of ranks.

- ``StepSampler``: which rows go into which step, micro-batch and rank; a pure function of seed and epoch
- ``collate``: rows to tensors with true document boundaries
- ``Loader``: the two together, resumable at any step
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from qwen_job.chatml import IGNORE

EMPTY = -1  # the row that fills up a last step: no target, so no gradient

Batch = dict[str, Any]


class Rows(Protocol):
    """Prepared rows; see qwen_job.data."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class StepSampler:
    """Yields one rank's micro-batches of row numbers, an epoch at a time.

    Step s of an epoch takes rows [s G, (s + 1) G) of one permutation, G the global batch. They are dealt to
    micro-batches first and ranks second, so the rows of a step depend on G alone. The last step of an epoch
    is shorter; ranks that get too few rows fill up with ``EMPTY``. Every row is seen exactly once an epoch, also where
    G changed within it (``begin_at``).
    """

    def __init__(self, rows: int, micro: int, accumulation: int, rank: int, world_size: int, seed: int | None) -> None:
        self.rows = rows
        self.micro = micro
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.global_batch = micro * accumulation * world_size
        self.epoch = 0
        self._begin = (0, 0)
        self._left_out: frozenset[int] = frozenset()

    def leave_out(self, rows: Sequence[int]) -> None:
        """Deal ``EMPTY`` in the place of these rows."""
        self._left_out = frozenset(rows)

    def begin_at(self, epoch: int, row: int) -> None:
        """Leave out the first ``row`` rows of ``epoch``: they were trained in steps of another width."""
        self._begin = (epoch, row)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the epochs that follow."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the epoch's permutation of all rows; the rows' own order without a seed (evaluation)."""
        if self.seed is None:
            return list(range(self.rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.rows, generator=generator).tolist()

    @property
    def _first(self) -> int:
        return self._begin[1] if self.epoch == self._begin[0] else 0

    def __len__(self) -> int:
        full, rest = divmod(self.rows - self._first, self.global_batch)
        wide = self.micro * self.world_size
        return full * (self.global_batch // wide) + -(-rest // wide)

    def __iter__(self) -> Iterator[list[int]]:
        order, wide = self.order(), self.micro * self.world_size
        for start in range(self._first, self.rows, wide):
            mine = order[start : start + wide][self.rank :: self.world_size]
            mine = [EMPTY if row in self._left_out else row for row in mine]
            yield mine + [EMPTY] * (self.micro - len(mine))


class _RowDataset(Dataset[tuple[int, Any]]):
    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, None if index == EMPTY else self.rows[index]


class Loader(DataLoader[Any]):
    """A DataLoader over ``StepSampler``; the Trainer skips to a step of an epoch without reading rows.

    ``prefetch`` is how many batches each worker keeps ready (torch's own default: 2), ``persistent`` keeps the workers
    from one epoch to the next; both mean nothing without workers.
    """

    def __init__(
        self,
        rows: Rows,
        sampler: StepSampler,
        pad_id: int,
        workers: int,
        pin: bool,
        length: int = 1,
        *,
        prefetch: int | None = None,
        persistent: bool = False,
    ) -> None:
        self.sampler_of_steps = sampler
        super().__init__(
            _RowDataset(rows),
            batch_sampler=sampler,
            collate_fn=partial(collate, pad_id=pad_id, length=length),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_outlive_signals,
            # Its own generator: the loader must not move the training's random state.
            generator=torch.Generator().manual_seed(0),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next pass."""
        self.sampler_of_steps.set_epoch(epoch)


def _outlive_signals(_worker: int) -> None:
    """Leave TERM and USR1 to the rank: a scheduler sends them to all processes, and a save needs its step's data."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(items: Sequence[tuple[int, Any]], pad_id: int, length: int = 1) -> Batch:
    """Return B rows as tensors [B, S], S the longest row, ``length`` at least.

    ``targets[b, i]`` is the token that position i should predict, ``IGNORE`` where it predicts nothing: in
    masked text, on pads, and at the end of a document, whose next token belongs to another one. Pads continue
    the last document: causal attention keeps them out of sight of every real token.
    """
    size = max(length, *(len(row.input_ids) for _, row in items if row is not None), 1)
    shape = (len(items), size)
    batch: Batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.int64),
        "targets": torch.full(shape, IGNORE, dtype=torch.int64),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "document_ids": torch.zeros(shape, dtype=torch.int64),
    }
    lengths = [_fill(batch, number, row, size) for number, (_, row) in enumerate(items)]
    batch["chosen"] = (batch["targets"].view(-1) != IGNORE).nonzero().view(-1)
    batch["document_lengths"] = lengths
    batch["rows"] = [index for index, _ in items if index != EMPTY]
    batch["tokens"] = sum(len(row.input_ids) for _, row in items if row is not None)
    batch["pairs"] = sum(int(length) ** 2 for _, row in items if row is not None for length in row.document_lengths)
    return batch


def empty_like(batch: Batch, pad_id: int) -> Batch:
    """Return a batch of the same shape with nothing to learn, to stand in for one that is skipped."""
    shape = batch["input_ids"].shape
    stand_in = collate([(EMPTY, None)] * shape[0], pad_id, shape[1])
    device = batch["input_ids"].device
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in stand_in.items()}


def _fill(batch: Batch, number: int, row: Any, size: int) -> list[int]:
    """Write one row into the batch; returns the lengths of its documents, pads counted to the last one."""
    if row is None:
        batch["position_ids"][number] = torch.arange(size)
        return [size]
    length = len(row.input_ids)
    documents = torch.as_tensor(row.document_lengths, dtype=torch.int64)
    starts = documents.cumsum(0) - documents
    batch["input_ids"][number, :length] = torch.as_tensor(row.input_ids, dtype=torch.int64)
    following = torch.as_tensor(row.labels, dtype=torch.int64).clone()
    following[starts] = IGNORE
    batch["targets"][number, : length - 1] = following[1:]
    positions = torch.as_tensor(row.position_ids, dtype=torch.int64)
    batch["position_ids"][number, :length] = positions
    batch["position_ids"][number, length:] = positions[-1] + 1 + torch.arange(size - length)
    batch["document_ids"][number, :length] = torch.repeat_interleave(torch.arange(len(documents)), documents)
    batch["document_ids"][number, length:] = len(documents) - 1
    return [*documents.tolist()[:-1], int(documents[-1]) + size - length]
