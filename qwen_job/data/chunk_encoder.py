"""Encode chunks of raw rows into files of tokens and document records: the work of a worker process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.template import Unrenderable
from qwen_job.data.arrange import arrange
from qwen_job.data.choose import copies, copies_of, held_out
from qwen_job.data.documents import Document
from qwen_job.data.fit import fit
from qwen_job.data.fit_rendered import fit_rendered
from qwen_job.data.formats import RecordError, detect_format, parse_record
from qwen_job.data.order import order_problems
from qwen_job.data.plain_rows import plain_row
from qwen_job.data.prepared import DOCUMENT, SPLITS, TOKEN, TOKENIZER_SIZE, UNUSED_KEY
from qwen_job.data.rows import Chunk, Malformed, parse_chunk
from qwen_job.data.understood import FORMAT, HOLDS, understood
from qwen_job.data.writers import ChatmlWriter, TemplateWriter
from qwen_job.errors import DataError
from qwen_job.run.sections import DataFile, DataSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 10
_BATCH = 1024


class Task(NamedTuple):
    """One chunk and where it comes from: ``split`` and ``file`` name the entry of the DataSpec."""

    number: int
    split: str
    file: int
    chunk: Chunk


class ChunkEncoder:
    """Encodes chunks into ``folder/NUMBER.SPLIT.{tokens,docs}``."""

    def __init__(self, spec: DataSpec, writer: ChatmlWriter | TemplateWriter, folder: Path) -> None:
        self._spec, self._writer, self._folder = spec, writer, folder
        self._tokenizer = writer.tokenizer
        self._ignored, self._reads = frozenset(spec.ignore_keys), writer.settler.reads

    def encode(self, task: Task) -> dict[str, int]:
        """Write the chunk's files and return its counts.

        Raises:
            DataError: rows are invalid; the message names the first ten.
        """
        counts: Counter[str] = Counter()
        rows = self._conversations(task, counts)
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
        written = self._written(rows, task, counts)
        documents = [document for _, found in written for document in found]
        splits = self._splits(task, [rows[at][0] for at, _ in written])
        for split in set(splits):
            counts[f"{split}_samples"] += splits.count(split)
        if not documents:
            return
        signed, lengths = self._writer.encode(documents, shared=len(documents) > len(written))
        numbers = [rows[at][0] for at, found in written for _ in found]
        if len(set(splits)) == 1 and int(lengths.max()) <= self._spec.max_length:
            out[splits[0]].add(signed, lengths.tolist(), numbers)
            return
        encoded = iter(np.split(signed, np.cumsum(lengths[:-1])))
        for split, (at, found) in zip(splits, written, strict=True):
            row, conversation = rows[at]
            for document in found:
                for fitted in self._fit(conversation, document, next(encoded), counts):
                    out[split].add(fitted, [fitted.size], [row])

    def _written(
        self, rows: list[tuple[int, Conversation]], task: Task, counts: Counter[str]
    ) -> list[tuple[int, list[Document]]]:
        """Return the places in ``rows`` of those that have documents, and these."""
        found, bad = [], _BadRows(self._file(task).path)
        for at, (row, conversation) in enumerate(rows):
            try:
                documents = self._writer.documents(conversation, counts)
            except Unrenderable as error:
                bad.add(row, error)
                continue
            if documents:
                found.append((at, documents))
        bad.refuse()
        return found

    def _fit(
        self, conversation: Conversation, document: Document, whole: NDArray[np.int32], counts: Counter[str]
    ) -> list[NDArray[np.int32]]:
        if whole.size <= self._spec.max_length:
            return [whole]
        if isinstance(self._writer, TemplateWriter):
            settled = self._writer.settler.settled(conversation, Counter())
            return fit_rendered(settled, document.turns, self._writer, self._spec, counts)
        segments = self._writer.segments(conversation, Counter())
        return [np.array(fitted, np.int32) for fitted in fit(segments, self._tokenizer, self._spec, counts)]

    def _splits(self, task: Task, rows: list[int]) -> list[str]:
        """Return the split of each row."""
        share = self._spec.eval_split if task.split == "train" and not self._spec.eval else 0.0
        held = {row for row in rows if held_out(share, task.file, row)} if share else ()
        return ["eval" if row in held else task.split for row in rows]

    def _file(self, task: Task) -> DataFile:
        file: DataFile = getattr(self._spec, task.split)[task.file]
        return file

    def _conversations(self, task: Task, counts: Counter[str]) -> list[tuple[int, Conversation]]:
        file, good = self._file(task), list[tuple[int, Conversation]]()
        weight, bad = file.weight, _BadRows(file.path)
        how = (self._spec.turn_order, self._ignored, counts, self._reads)
        given = "" if self._spec.format == "auto" else self._spec.format
        # Few rows differ in these: format, keys that training ignores, and what there is besides plain turns.
        read: Counter[tuple[str, tuple[str, ...], tuple[str, ...]]] = Counter()
        usual = not (given or self._ignored) and self._spec.turn_order == "strict"
        for row, value in parse_chunk(task.chunk):
            plain = plain_row(value) if usual else None
            if plain is not None:
                layout, conversation = plain
                read[layout, conversation.unused, ()] += 1
            else:
                try:
                    layout = given or (detect_format(value) if type(value) is dict else "auto")
                    found = read_row(value, layout, *how)
                except RecordError as error:
                    bad.add(row, error)
                    continue
                if found is None:
                    continue
                conversation = found
                read[layout, conversation.unused, understood(conversation)] += 1
            if conversation.system == "" and self._writer.adds_system:
                counts["without_system"] += 1
            if weight >= 1 or copies(weight, task.file, row):
                good.append((row, conversation))
            else:
                counts["left_out_by_weight"] += 1
        bad.refuse()
        for (layout, keys, held), rows in read.items():
            for name in (FORMAT + layout, *(UNUSED_KEY + key for key in set(keys)), *(HOLDS + kind for kind in held)):
                counts[name] += rows
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
    thinking: str = "keep",
) -> Conversation | None:
    """Read one row; None if ``turn_order`` leaves it out, which is added to ``counts``.

    ``thinking`` as in :func:`~qwen_job.data.formats.parse_record`.

    Raises:
        RecordError: the first reason why the row cannot be trained on.
    """
    if isinstance(value, Malformed):
        raise RecordError("row", value.message)
    conversation = parse_record(value, layout, ignored, thinking)
    if turn_order != "strict":
        arranged = arrange(conversation, turn_order, Counter() if counts is None else counts)
        if arranged is None:
            return None
        conversation = arranged
    for problem in order_problems(conversation, turn_order):
        raise problem
    return conversation


class _BadRows:
    """Collects the rows of a file that cannot be trained on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count, self._first = 0, list[str]()

    def add(self, row: int, error: Exception) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            self._first.append(f"{self._path}:{row}: {error}")

    def refuse(self) -> None:
        """Raise a DataError if there are any."""
        if not self._count:
            return
        more = f"{self._count} bad rows so far" if self._count > _SHOWN else "the file has bad rows"
        tools = f"'qwen-job data check {self._path}' lists them all, 'qwen-job data clean' writes a copy without them"
        raise DataError("\n".join([*self._first, f"{self._path}: {more}; {tools}"]))
