"""A chunk of raw rows -> files of tokens and document records; what each worker process does all day."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qwen_job.data.chatml import ChatTokenizer, Segment, texts_of
from qwen_job.data.choose import copies, held_out
from qwen_job.data.files import Chunk, Malformed, parse_chunk
from qwen_job.data.fit import fit
from qwen_job.data.formats import Conversation, RecordError, order_problems, parse_record
from qwen_job.data.prepared import DOCUMENT, SPLITS, TOKEN
from qwen_job.data.spec import DataFile, DataSpec
from qwen_job.errors import DataError

_SHOWN = 10


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

    def encode(self, task: Task) -> dict[str, int]:
        """Write the chunk's files and return its counts. DataError names every bad row of it (the first
        ten).
        """
        counts: Counter[str] = Counter()
        file = getattr(self._spec, task.split)[task.file]
        rows = self._conversations(task, file, counts)
        texts = [texts_of(conversation, self._spec.system_prompt) for _, conversation in rows]
        ids = iter(self._tokenizer.encode_batch([text for sample in texts for _, text in sample]))
        tokens = {split: array("i") for split in SPLITS}
        documents: dict[str, list[tuple[int, int, int, int]]] = {split: [] for split in SPLITS}
        for (row, _), sample in zip(rows, texts, strict=True):
            split = self._split_of(task, row)
            parts = [Segment(role, next(ids)) for role, _ in sample]
            counts[f"{split}_samples"] += 1
            for signed in fit(parts, self._tokenizer, self._spec, counts):
                documents[split].append((len(tokens[split]), len(signed), task.file, row))
                tokens[split].extend(signed)
        for split in SPLITS:
            self._write(task.number, split, tokens[split], documents[split], counts)
        return dict(counts)

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

    def _write(self, number: int, split: str, tokens: array[int], documents: list[Any], counts: Counter[str]) -> None:
        signed = np.frombuffer(tokens, np.int32) if len(tokens) else np.empty(0, np.int32)
        counts[f"{split}_documents"] += len(documents)
        counts[f"{split}_tokens"] += signed.size
        counts[f"{split}_trained_tokens"] += int(np.count_nonzero(signed >= 0))
        signed.astype(TOKEN, copy=False).tofile(self._folder / f"{number:08d}.{split}.tokens")
        np.array(documents, DOCUMENT).tofile(self._folder / f"{number:08d}.{split}.docs")


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
