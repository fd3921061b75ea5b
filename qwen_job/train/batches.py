"""From prepared rows to the batches of every optimizer step, the same whatever the number of ranks.

- ``StepSampler``: which rows go into which step, micro-batch and rank; a pure function of seed and epoch
- ``collate``: rows to tensors with true document boundaries
- ``Loader``: the two together, resumable at any step
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypedDict, cast

import torch
from torch.utils.data import DataLoader, Dataset

from qwen_job.chatml import IGNORE

EMPTY = -1  # a row without targets, and so without a gradient: fills up the last step of an epoch


class Batch(TypedDict):
    """One micro-batch of B rows, S the longest; see ``collate``."""

    input_ids: torch.Tensor  # [B, S], int64
    targets: torch.Tensor  # [B, S], int64
    position_ids: torch.Tensor  # [B, S], int64
    document_ids: torch.Tensor  # [B, S], int64
    chosen: torch.Tensor  # [T], the flat positions that have a target
    lengths: torch.Tensor  # [B], int64, the real tokens of each row, which pads follow
    boundaries: torch.Tensor  # [D + 1], int32, where the D documents of all rows begin and end in [B S]
    document_lengths: list[list[int]]  # of each row, pads counted to the last document
    rows: list[int]  # the numbers of the prepared rows
    tokens: int  # pads not counted
    pairs: int  # the sum of squares of the documents' lengths


class Rows(Protocol):
    """Prepared rows; see qwen_job.data."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class StepSampler:
    """Yields one rank's micro-batches of row numbers, an epoch at a time.

    Ranks that share rows (sequence_parallel.py) are one here: ``rank`` is their group, ``world_size`` counts groups.

    Step s of an epoch takes rows [s G, (s + 1) G) of one permutation, G the global batch. They are dealt to
    micro-batches first and ranks second, so the rows of a step depend on G alone. The last step of an epoch
    is shorter; ranks that get too few rows are filled up with ``EMPTY``. Every row is seen exactly once an epoch, even
    where G changed within it (``begin_at``).
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
        self._first_rows: list[int] = []

    def leave_out(self, rows: Sequence[int]) -> None:
        """Replace these rows by ``EMPTY``."""
        self._left_out = frozenset(rows)

    def begin_with(self, rows: Sequence[int]) -> None:
        """Let the first epoch begin with these rows; the others keep their order."""
        self._first_rows = list(rows)

    def begin_at(self, epoch: int, row: int) -> None:
        """Skip the first ``row`` rows of ``epoch``, which are trained already."""
        self._begin = (epoch, row)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the epochs that follow."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """Return the epoch's permutation of all rows; the rows' own order without a seed (evaluation)."""
        if self.seed is None:
            return list(range(self.rows))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        if self.epoch or not self._first_rows:
            return order
        first = set(self._first_rows)
        return [*self._first_rows, *(row for row in order if row not in first)]

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
    """A DataLoader over ``StepSampler`` that begins anywhere in an epoch without reading the rows before.

    ``prefetch`` is how many batches each worker keeps ready (torch's own default: 2), ``persistent`` keeps the workers
    from one epoch to the next; both have no effect without workers. ``length`` and ``multiple``: see ``collate``.
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
        multiple: int = 1,
    ) -> None:
        self.sampler_of_steps = sampler
        super().__init__(
            _RowDataset(rows),
            batch_sampler=sampler,
            collate_fn=partial(collate, pad_id=pad_id, length=length, multiple=multiple),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=persistent and workers > 0,
            worker_init_fn=_outlive_signals,
            # Its own generator: the loader must not change the random state of the training.
            generator=torch.Generator().manual_seed(0),
        )

    def begin_at(self, epoch: int, row: int) -> None:
        """Let the next pass begin at ``row`` of ``epoch``."""
        self.sampler_of_steps.begin_at(epoch, row)
        self.sampler_of_steps.set_epoch(epoch)


def _outlive_signals(_worker: int) -> None:
    """Ignore TERM and USR1, which a scheduler sends to all processes: a save needs the step's data."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(items: Sequence[tuple[int, Any]], pad_id: int, length: int = 1, multiple: int = 1) -> Batch:
    """Return B rows as tensors [B, S], S the longest row, ``length`` at least, and a multiple of ``multiple``.

    ``targets[b, i]`` is the token that position i should predict, ``IGNORE`` where it predicts nothing: in
    masked text, on pads, and at the end of a document, whose next token belongs to another one. Pads continue
    the last document: causal attention hides them from every real token.
    """
    size = max(length, *(len(row.input_ids) for _, row in items if row is not None), 1)
    size = -(-size // multiple) * multiple
    shape = (len(items), size)
    rows = [row for _, row in items if row is not None]
    batch: Batch = {
        "input_ids": torch.full(shape, pad_id, dtype=torch.int64),
        "targets": torch.full(shape, IGNORE, dtype=torch.int64),
        "position_ids": torch.zeros(shape, dtype=torch.int64),
        "document_ids": torch.zeros(shape, dtype=torch.int64),
        "chosen": torch.empty(0, dtype=torch.int64),
        "lengths": torch.tensor([0 if row is None else len(row.input_ids) for _, row in items], dtype=torch.int64),
        "boundaries": torch.zeros(1, dtype=torch.int32),
        "document_lengths": [],
        "rows": [index for index, _ in items if index != EMPTY],
        "tokens": sum(len(row.input_ids) for row in rows),
        "pairs": sum(int(length) ** 2 for row in rows for length in row.document_lengths),
    }
    batch["document_lengths"] = [_fill(batch, number, row, size) for number, (_, row) in enumerate(items)]
    # Kernels of linear attention take no document without tokens.
    lengths = [length for documents in batch["document_lengths"] for length in documents if length]
    batch["boundaries"] = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    batch["chosen"] = (batch["targets"].view(-1) != IGNORE).nonzero().view(-1)
    return batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on ``device``."""
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    return cast(Batch, moved)


def empty_like(batch: Batch, pad_id: int) -> Batch:
    """Return a batch of the same shape with nothing to learn, to replace one that is skipped."""
    shape = batch["input_ids"].shape
    stand_in = collate([(EMPTY, None)] * shape[0], pad_id, shape[1])
    return on_device(stand_in, batch["input_ids"].device)


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
