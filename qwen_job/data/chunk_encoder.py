"""Encode chunks of raw rows into files of tokens and document records: the work of a worker process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwen_job.chatml import ROLES
from qwen_job.data.arrange import arrange
from qwen_job.data.choose import copies, copies_of, held_out
from qwen_job.data.conversation import Conversation
from qwen_job.data.encode import ChatTokenizer, Flat, Segment, refuse_more_than_text, signed_ids, texts_of
from qwen_job.data.fit import fit
from qwen_job.data.formats import RecordError, parse_record
from qwen_job.data.order import order_problems
from qwen_job.data.prepared import DOCUMENT, SPLITS, TOKEN, TOKENIZER_SIZE, UNUSED_KEY
from qwen_job.data.rows import Chunk, Malformed, parse_chunk
from qwen_job.errors import DataError
from qwen_job.run.sections import DataFile, DataSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 10
_BATCH = 1024
_ROLE = {role: number for number, role in enumerate(ROLES)}


class Task(NamedTuple):
    """One chunk and where it comes from: ``split`` and ``file`` name the entry of the DataSpec."""

    number: int
    split: str
    file: int
    chunk: Chunk


class ChunkEncoder:
    """Encodes chunks into ``folder/NUMBER.SPLIT.{tokens,docs}``."""

    def __init__(self, spec: DataSpec, tokenizer: ChatTokenizer, folder: Path) -> None:
        self._spec, self._tokenizer, self._folder = spec, tokenizer, folder
        self._frames = Frames(tokenizer, spec.mask)
        self._ignored = frozenset(spec.ignore_keys)

    def encode(self, task: Task) -> dict[str, int]:
        """Write the chunk's files and return its counts.

        Raises:
            DataError: rows are invalid; the message names the first ten.
        """
        counts: Counter[str] = Counter()
        rows = self._conversations(task, getattr(self._spec, task.split)[task.file], counts)
        out = {split: _Documents(task.file) for split in SPLITS}
        # In small batches that stay in the processor's cache.
        for start in range(0, len(rows), _BATCH):
            self._encode_batch(rows[start : start + _BATCH], task, out, counts)
        for split in SPLITS:
            self._write(task.number, split, out[split], counts)
        return {**counts, TOKENIZER_SIZE: self._tokenizer.size}

    def _encode_batch(
        self, rows: list[tuple[int, Conversation]], task: Task, out: dict[str, _Documents], counts: Counter[str]
    ) -> None:
        samples = [texts_of(conversation, self._spec.system_prompt) for _, conversation in rows]
        numbers = [row for row, _ in rows]
        parts = [part for sample in samples for part in sample]
        flat = self._tokenizer.encode_flat([text for _, text in parts])
        roles = np.fromiter((_ROLE[role] for role, _ in parts), np.intp, len(parts))
        signed, segment_lengths = self._frames.join(flat, roles)
        segments = np.fromiter(map(len, samples), np.intp, len(samples))
        lengths = np.add.reduceat(segment_lengths, np.cumsum(segments) - segments)
        splits = [self._split_of(task, row) for row in numbers]
        for split in set(splits):
            counts[f"{split}_samples"] += splits.count(split)
        if len(set(splits)) == 1 and int(lengths.max()) <= self._spec.max_length:
            out[splits[0]].add(signed, lengths, numbers)
            return
        ids = iter(np.split(flat.ids, np.cumsum(flat.lengths[:-1])))
        framed = np.split(signed, np.cumsum(lengths[:-1]))
        for split, row, sample, whole in zip(splits, numbers, samples, framed, strict=True):
            texts = [(role, next(ids)) for role, _ in sample]
            for document in self._fit(texts, whole, counts):
                out[split].add(document, [document.size], [row])

    def _fit(
        self, parts: list[tuple[str, NDArray[np.int32]]], whole: NDArray[np.int32], counts: Counter[str]
    ) -> list[NDArray[np.int32]]:
        if whole.size <= self._spec.max_length:
            return [whole]
        segments = [Segment(role, ids.tolist()) for role, ids in parts]
        return [np.array(document, np.int32) for document in fit(segments, self._tokenizer, self._spec, counts)]

    def _split_of(self, task: Task, row: int) -> str:
        split_off = task.split == "train" and not self._spec.eval
        return "eval" if split_off and held_out(self._spec.eval_split, task.file, row) else task.split

    def _conversations(self, task: Task, file: DataFile, counts: Counter[str]) -> list[tuple[int, Conversation]]:
        spec, good = self._spec, list[tuple[int, Conversation]]()
        bad, problems = 0, list[str]()
        unused: Counter[tuple[str, ...]] = Counter()
        for row, value in parse_chunk(task.chunk):
            try:
                conversation = read_row(value, spec.format, spec.turn_order, self._ignored, counts)
            except RecordError as error:
                bad += 1
                if bad <= _SHOWN:
                    problems.append(f"{file.path}:{row}: {error}")
                continue
            if conversation is None:
                continue
            unused[conversation.unused] += 1
            if conversation.system == "" and spec.system_prompt:
                counts["without_system"] += 1
            if copies(file.weight, task.file, row):
                good.append((row, conversation))
            else:
                counts["left_out_by_weight"] += 1
        if bad:
            raise DataError("\n".join([*problems, _hint(file.path, bad)]))
        for keys, rows in unused.items():
            for key in set(keys):
                counts[UNUSED_KEY + key] += rows
        return good

    def _write(self, number: int, split: str, documents: _Documents, counts: Counter[str]) -> None:
        signed, records = documents.tokens(), documents.records()
        counts[f"{split}_documents"] += records.size
        counts[f"{split}_tokens"] += signed.size
        counts[f"{split}_trained_tokens"] += self._trained(split, signed, records)
        signed.astype(TOKEN, copy=False).tofile(self._folder / f"{number:08d}.{split}.tokens")
        records.tofile(self._folder / f"{number:08d}.{split}.docs")

    def _trained(self, split: str, signed: NDArray[np.int32], records: NDArray[Any]) -> int:
        """Count the trained tokens of an epoch, in which each document is repeated by its file's weight."""
        if not records.size:
            return 0
        weights = [file.weight for file in getattr(self._spec, split) or self._spec.train]
        each = np.add.reduceat(signed >= 0, records["offset"], dtype=np.int64)
        return int(each @ copies_of(weights, records["file"], records["row"]))


class Frames:
    """:func:`~qwen_job.data.encode.signed_ids` on arrays: the same tokens without a Python object for each."""

    def __init__(self, tokenizer: ChatTokenizer, mask: str) -> None:
        self._before, self._after = [], []
        for role in ROLES:
            marked = np.array(signed_ids([Segment(role, [])], tokenizer, mask), np.int32)
            length = len(tokenizer.masked_frames[role])
            self._before.append(marked[:length])
            self._after.append(marked[length:])
        self._before_lengths, self._after_lengths = (
            np.array([frame.size for frame in frames]) for frames in (self._before, self._after)
        )

    def join(self, flat: Flat, roles: NDArray[np.intp]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return (signed ids int32[n], length of each segment int64[segments]); ``roles``: indices in ROLES."""
        before = self._before_lengths[roles]
        lengths = before + flat.lengths + self._after_lengths[roles]
        starts = np.cumsum(lengths) - lengths
        text_starts = starts + before
        signed = np.empty(int(lengths.sum()), np.int32)
        shift = text_starts - (np.cumsum(flat.lengths) - flat.lengths)
        masked = np.repeat(np.where(roles == _ROLE["assistant"], 0, -1).astype(np.int32), flat.lengths)
        signed[np.arange(flat.ids.size) + np.repeat(shift, flat.lengths)] = flat.ids ^ masked
        for number in range(len(ROLES)):
            here = roles == number
            text_ends = (text_starts + flat.lengths)[here]
            _place(signed, starts[here], self._before[number])
            _place(signed, text_ends, self._after[number])
        return signed, lengths


def _place(signed: NDArray[np.int32], at: NDArray[np.int64], frame: NDArray[np.int32]) -> None:
    signed[at[:, None] + np.arange(frame.size)] = frame


class _Documents:
    def __init__(self, file: int) -> None:
        self._file = file
        self._tokens: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        self._lengths: list[int] = []
        self._rows: list[int] = []

    def add(self, signed: NDArray[np.int32], lengths: Iterable[int], rows: list[int]) -> None:
        """Add documents of ``lengths``, concatenated in ``signed``."""
        self._tokens.append(signed)
        self._lengths.extend(lengths)
        self._rows.extend(rows)

    def tokens(self) -> NDArray[np.int32]:
        return np.concatenate(self._tokens)

    def records(self) -> NDArray[Any]:
        records = np.zeros(len(self._rows), DOCUMENT)
        records["length"] = self._lengths
        records["offset"] = np.cumsum(records["length"], dtype=np.int64) - records["length"]
        records["file"], records["row"] = self._file, self._rows
        return records


def read_row(
    value: Any,
    layout: str,
    turn_order: str = "strict",
    ignored: frozenset[str] = frozenset(),
    counts: Counter[str] | None = None,
) -> Conversation | None:
    """Read one row; None if ``turn_order`` leaves it out, which is added to ``counts``.

    Raises:
        RecordError: the first reason why the row cannot be trained on.
    """
    if isinstance(value, Malformed):
        raise RecordError("row", value.message)
    conversation = parse_record(value, layout, ignored, "as_written")
    refuse_more_than_text(conversation)
    if turn_order != "strict":
        arranged = arrange(conversation, turn_order, Counter() if counts is None else counts)
        if arranged is None:
            return None
        conversation = arranged
    for problem in order_problems(conversation, turn_order):
        raise problem
    return conversation


def _hint(path: Path, count: int) -> str:
    more = f"{count} bad rows so far" if count > _SHOWN else "the file has bad rows"
    tools = f"'qwen-job data check {path}' lists them all, 'qwen-job data clean' writes a copy without them"
    return f"{path}: {more}; {tools}"
