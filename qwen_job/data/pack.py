"""Pack documents into rows of ``max_length`` tokens by best-fit decreasing, from their lengths alone."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Documents packed at a time: bounds memory, and wastes less than one row.
WINDOW = 1 << 20


def pack(lengths: NDArray[np.int32], max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (starts int64[rows + 1], members int64[n]).

    Row r holds the documents ``members[starts[r]:starts[r + 1]]``. The longest documents come first, each in the
    fullest row that still has room (best-fit decreasing). Documents of one length are placed together, so the cost
    grows with the number of distinct lengths. The result depends on ``lengths`` alone.

    Raises:
        ValueError: a length is 0 or above ``max_length``.
    """
    if lengths.size and (int(lengths.min()) < 1 or int(lengths.max()) > max_length):
        raise ValueError(f"lengths must be from 1 to {max_length}")
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    distinct, counts = np.unique(-lengths[order].astype(np.int64), return_counts=True)
    row_of = np.empty(lengths.size, np.int64)
    rows = _Rows(max_length)
    done = 0
    for negative, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        row_of[order[done : done + count]] = rows.place(-negative, count)
        done += count
    starts = np.zeros(rows.count + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=rows.count), out=starts[1:])
    return starts, np.argsort(row_of, kind="stable").astype(np.int64)


class _Rows:
    """Open rows, by the room left in them."""

    def __init__(self, max_length: int) -> None:
        self.count = 0
        self._max_length = max_length
        self._rooms: list[int] = []  # ascending
        self._open: dict[int, list[NDArray[np.int64]]] = {}

    def place(self, length: int, count: int) -> NDArray[np.int64]:
        """Place ``count`` documents of ``length``; return their rows."""
        placed: list[NDArray[np.int64]] = []
        while count:
            at = bisect_left(self._rooms, length)
            if at < len(self._rooms):
                room = self._rooms.pop(at)
                rows = np.concatenate(self._open.pop(room))
            else:
                room = self._max_length
                rows = np.arange(self.count, self.count - (-count // (room // length)), dtype=np.int64)
                self.count += rows.size
            placed.append(self._fill(rows, room, length, count))
            count -= placed[-1].size
        return np.concatenate(placed)

    def _fill(self, rows: NDArray[np.int64], room: int, length: int, count: int) -> NDArray[np.int64]:
        """Fill ``rows`` one after another, each as far as possible, with up to ``count`` documents."""
        each = room // length
        full, rest = min(count // each, rows.size), 0
        self._reopen(rows[:full], room - each * length)
        if full < rows.size:
            rest = count - full * each
            self._reopen(rows[full : full + 1], room - rest * length)
            self._reopen(rows[full + 1 :], room)
        return np.repeat(rows, each)[: full * each + rest]

    def _reopen(self, rows: NDArray[np.int64], room: int) -> None:
        if not rows.size or not room:
            return
        if room not in self._open:
            insort(self._rooms, room)
            self._open[room] = []
        self._open[room].append(rows)
