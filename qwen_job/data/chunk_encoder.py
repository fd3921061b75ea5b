"""A chunk of raw rows -> files of tokens and document records; what each worker process does all day."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qwen_job.data.chatml import ChatTokenizer, Segment, signed_ids, texts_of
from qwen_job.data.choose import copies, held_out
from qwen_job.data.files import Chunk, Malformed, parse_chunk
from qwen_job.data.fit import fit
from qwen_job.data.formats import Conversation, RecordError, order_problems, parse_record
from qwen_job.data.prepared import DOCUMENT, SPLITS, TOKEN
from qwen_job.data.spec import DataFile, DataSpec
from qwen_job.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 10
_BATCH = 256


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
        self._frames = PackedFrames(tokenizer, spec.mask)

    def encode(self, task: Task) -> dict[str, int]:
        """Write the chunk's files and return its counts. DataError names its bad rows (the first ten)."""
        counts: Counter[str] = Counter()
        rows = self._conversations(task, getattr(self._spec, task.split)[task.file], counts)
        out = {split: _Documents(task.file) for split in SPLITS}
        # In small batches, so that what is being worked on stays in the processor's cache.
        for start in range(0, len(rows), _BATCH):
            self._encode_batch(rows[start : start + _BATCH], task, out, counts)
        for split in SPLITS:
            self._write(task.number, split, out[split], counts)
        return dict(counts)

    def _encode_batch(
        self,
        rows: list[tuple[int, Conversation]],
        task: Task,
        out: dict[str, _Documents],
        counts: Counter[str],
    ) -> None:
        samples = [texts_of(conversation, self._spec.system_prompt) for _, conversation in rows]
        ids = iter(self._tokenizer.encode_packed([text for sample in samples for _, text in sample]))
        for (row, _), sample in zip(rows, samples, strict=True):
            split = self._split_of(task, row)
            counts[f"{split}_samples"] += 1
            parts = [(role, next(ids)) for role, _ in sample]
            signed = self._frames.join(parts)
            if len(signed) <= self._spec.max_length * TOKEN.itemsize:
                out[split].add(signed, row)
                continue
            segments = [Segment(role, array("i", text).tolist()) for role, text in parts]
            for document in fit(segments, self._tokenizer, self._spec, counts):
                out[split].add(array("i", document).tobytes(), row)

    def _split_of(self, task: Task, row: int) -> str:
        split_off = task.split == "train" and not self._spec.eval
        return "eval" if split_off and held_out(self._spec.eval_split, task.file, row) else task.split

    def _conversations(self, task: Task, file: DataFile, counts: Counter[str]) -> list[tuple[int, Conversation]]:
        good: list[tuple[int, Conversation]] = []
        bad: list[str] = []
        for row, value in parse_chunk(task.chunk):
            problem = None
            try:
                conversation = read_row(value, self._spec.format)
            except RecordError as error:
                problem = error
            if problem:
                bad.append(f"{file.path}:{row}: {problem}")
            elif copies(file.weight, task.file, row):
                good.append((row, conversation))
            else:
                counts["left_out_by_weight"] += 1
        if bad:
            raise DataError("\n".join([*bad[:_SHOWN], _hint(file.path, len(bad))]))
        return good

    def _write(self, number: int, split: str, documents: _Documents, counts: Counter[str]) -> None:
        signed = np.frombuffer(b"".join(documents.texts), np.int32)
        records = documents.records()
        counts[f"{split}_documents"] += records.size
        counts[f"{split}_tokens"] += signed.size
        counts[f"{split}_trained_tokens"] += int(np.count_nonzero(signed >= 0))
        signed.astype(TOKEN, copy=False).tofile(self._folder / f"{number:08d}.{split}.tokens")
        records.tofile(self._folder / f"{number:08d}.{split}.docs")


class PackedFrames:
    """:func:`~qwen_job.data.chatml.signed_ids` on packed ids: the same tokens without a Python object for each."""

    def __init__(self, tokenizer: ChatTokenizer, mask: str) -> None:
        def framed(role: str) -> tuple[bytes, bytes]:
            marked = signed_ids([Segment(role, [])], tokenizer, mask)
            length = len(tokenizer.masked_frames[role])
            return array("i", marked[:length]).tobytes(), array("i", marked[length:]).tobytes()

        self._frames = {role: framed(role) for role in tokenizer.roles}
        self._last_system = (b"", b"")

    def join(self, parts: Iterable[tuple[str, bytes]]) -> bytes:
        """Return the signed ids, packed, of segments given as (role, packed ids of the text)."""
        pieces: list[bytes] = []
        for role, text in parts:
            before, after = self._frames[role]
            if role == "system":
                # Nearly always the same one.
                if text != self._last_system[0]:
                    self._last_system = (text, _masked(text))
                text = self._last_system[1]
            elif role == "user":
                text = _masked(text)
            pieces += before, text, after
        return b"".join(pieces)


def _masked(text: bytes) -> bytes:
    return np.invert(np.frombuffer(text, np.int32)).tobytes()


class _Documents:
    def __init__(self, file: int) -> None:
        self._file = file
        self.texts: list[bytes] = []
        self._rows: list[int] = []

    def add(self, signed: bytes, row: int) -> None:
        self.texts.append(signed)
        self._rows.append(row)

    def records(self) -> NDArray[Any]:
        records = np.zeros(len(self._rows), DOCUMENT)
        records["length"] = [len(text) // TOKEN.itemsize for text in self.texts]
        records["offset"] = np.cumsum(records["length"], dtype=np.int64) - records["length"]
        records["file"], records["row"] = self._file, self._rows
        return records


def read_row(value: Any, layout: str) -> Conversation:
    """Read one row strictly. Raises RecordError for the first thing that keeps it from being trained on."""
    if isinstance(value, Malformed):
        raise RecordError("row", value.message)
    conversation = parse_record(value, layout)
    for problem in order_problems(conversation):
        raise problem
    return conversation


def _hint(path: Path, count: int) -> str:
    more = f"{count} bad rows so far" if count > _SHOWN else "the file has bad rows"
    tools = f"'qwen-job data check {path}' lists them all, 'qwen-job data clean' writes a copy without them"
    return f"{path}: {more}; {tools}"
