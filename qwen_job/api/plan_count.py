"""Count the training data for ``qwen-job plan``; the plan itself reads no files."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation
from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.data.encode import texts_of
from qwen_job.data.rows import CHUNK_BYTES, parse_chunk, read_chunks
from qwen_job.data.rules import read as read_row
from qwen_job.data.sources import Source, cached_data
from qwen_job.errors import DataError, QwenJobError
from qwen_job.facts.data_names import is_name, shown
from qwen_job.job import Job
from qwen_job.job.model import DataFile
from qwen_job.job.paths import source_cache
from qwen_job.plan.reasoning import CHATML, template_thinking
from qwen_job.plan.schedule import DataSize

# Text to read from all files together (about a second). Anything longer is estimated from its beginning.
LIMIT_BYTES = 32 << 20
_WOULD_END = f"the job would end with exit code {DataError.exit_code}"
_COMPRESSED = (".gz", ".zst", ".zstd", ".parquet")


class Counted(NamedTuple):
    """What was read of data.train: its size, or why it has none, and warnings about rows that the run refuses."""

    size: DataSize | None
    missing: str = ""
    warnings: tuple[str, ...] = ()


@dataclass
class _Sum:
    samples: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    rows: int = 0
    bad: int = 0
    first_bad: str = ""
    reasoned: int = 0

    def add(self, tokens: float) -> None:
        self.samples += 1
        self.tokens += tokens
        self.squares += tokens * tokens

    def add_scaled(self, other: _Sum, scale: float) -> None:
        self.samples += scale * other.samples
        self.tokens += scale * other.tokens
        self.squares += scale * other.squares
        self.rows += other.rows
        self.bad += other.bad
        self.first_bad = self.first_bad or other.first_bad
        self.reasoned += other.reasoned


def _paths(job: Job, file: DataFile) -> list[Path]:
    """Return the files of an entry of data.train; a plan fetches none.

    Raises:
        DataError: it names data that is not in the job's cache.
    """
    if not is_name(file.path):
        return [Path(file.path)]
    cache = source_cache(job)
    found = cached_data(Source(file.path, file.revision, cache))
    if found is None:
        raise DataError(
            f"{shown(file.path)} is not in the cache {cache}, and the run will fetch it; use --samples N "
            f"--tokens-per-sample N to give its size, or fetch it now: 'qwen-job data fetch {shown(file.path)} "
            f"--cache {cache}'"
        )
    return found.files


def data_size(job: Job, limit: int = LIMIT_BYTES) -> Counted:
    """Count the conversations and the invalid rows, and estimate the tokens."""
    total, whole = _Sum(), True
    for file in job.data.train:
        try:
            paths = _paths(job, file)
            for path in paths:
                found, scale = _count(job, path, limit // len(job.data.train) // len(paths))
                whole &= scale == 1.0
                total.add_scaled(found, scale * file.weight)
        except (QwenJobError, OSError) as error:
            return Counted(None, str(error))
    if not total.samples:
        return Counted(None, "no readable conversation in data.train; run 'qwen-job data check' to see why")
    held_out = 0.0 if job.data.eval else job.data.eval_split
    words = "counted" if whole else f"estimated from the first {limit >> 20} MiB"
    kept = 1 - held_out
    source = f"{words}, tokens estimated from the text"
    size = DataSize(round(total.samples * kept), total.tokens * kept, total.squares / total.tokens, source)
    return Counted(size, warnings=tuple(filter(None, (_invalid(total, whole), _reasoned(job, total, whole)))))


def _invalid(total: _Sum, whole: bool) -> str:
    """Return the warning about rows that the run would refuse; empty if there are none."""
    if not total.bad:
        return ""
    rows = f"{_share(total.bad, total, whole)} invalid ({total.first_bad})"
    fix = "'qwen-job data check' lists them, 'qwen-job data clean' writes a copy without them"
    return f"data.train: {rows}; {_WOULD_END}; {fix}"


def _reasoned(job: Job, total: _Sum, whole: bool) -> str:
    """Return the warning about reasoning for which the chat template has no place; empty if there is none."""
    if not total.reasoned:
        return ""
    template = "ChatML" if job.data.template == CHATML else f"the chat template of {job.model.name}"
    have = _share(total.reasoned, total, whole).replace(" is", " has").replace(" are", " have")
    return (
        f"data.train: {have} reasoning, for which {template} has no place; {_WOULD_END}; write data.thinking: strip to "
        "train without it, as_written to train it as text, or choose a model that reasons, such as Qwen3"
    )


def _share(some: int, total: _Sum, whole: bool) -> str:
    """Return how many of the rows that were read: ``1 of 300 rows is``."""
    read = f"{total.rows:,}" if whole else f"the first {total.rows:,}"
    return f"1 of {read} rows is" if some == 1 else f"{some:,} of {read} rows are"


def _count(job: Job, path: Path, limit: int) -> tuple[_Sum, float]:
    """Return the sums over the beginning of a file, and the ratio of the whole file to it (1.0: all was read)."""
    data = job.data
    no_place = data.thinking == "keep" and template_thinking(job) == "none"
    # As the run reads it: <think> in a text stays text where the template has no place for reasoning.
    thinking = "as_written" if no_place else data.thinking
    how = (data.format, data.turn_order, frozenset(data.ignore_keys), Counter[str](), thinking)
    found, read, ratio = _Sum(), 0, 1.0
    for chunk in read_chunks(path, min(CHUNK_BYTES, limit)):
        if read >= limit:
            return found, max(1.0, path.stat().st_size * ratio / read)
        if not read and path.suffix in _COMPRESSED:
            ratio = len(chunk.payload) / len(zlib.compress(chunk.payload))
        read += len(chunk.payload)
        for row, value in parse_chunk(chunk):
            conversation, faults = read_row(value, *how)
            found.rows += 1
            found.bad += bool(faults)
            if faults and not found.first_bad:
                found.first_bad = f"{path.name}:{row}: {faults[0][1]}: {faults[0][2]}"
            found.reasoned += no_place and conversation is not None and _reasons(conversation)
            for tokens in _lengths(job, conversation) if conversation and not faults else ():
                found.add(tokens)
    return found, 1.0


def _reasons(conversation: Conversation) -> bool:
    return any((turn.reasoning or "").strip() for turn in conversation.turns if turn.role == "assistant")


def _lengths(job: Job, conversation: Conversation) -> Iterator[float]:
    """Yield the token count of each sample made from one row."""
    most = job.train.model_max_length
    texts = [text for _, text in texts_of(conversation, _system(job))]
    tokens = sum(map(_tokens, [*texts, *_beside_texts(conversation)]))
    if tokens <= most:
        yield tokens
    elif job.data.long_samples == "truncate":
        yield most
    elif job.data.long_samples == "split":
        pieces = -(-tokens // most)
        for _ in range(int(pieces)):
            yield tokens / pieces


def _beside_texts(conversation: Conversation) -> Iterator[str]:
    """Yield reasoning, and tools and calls as a chat template writes them."""
    for turn in conversation.turns:
        if turn.reasoning:
            yield turn.reasoning
        for call in turn.calls:
            yield json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    for tool in conversation.tools:
        yield json.dumps(tool, ensure_ascii=False)


def _system(job: Job) -> str:
    return SYSTEM_PROMPT if job.data.system_prompt is None else job.data.system_prompt


def _tokens(text: str) -> float:
    """Estimate without a tokenizer: 1.5 Chinese or 4 other characters per token, plus ChatML's frame.

    A Chinese character is three bytes of UTF-8; counting bytes is 80 times as fast as checking each character.
    """
    wide = (len(text.encode("utf-8", "replace")) - len(text)) / 2
    return 5 + wide / 1.5 + max(0.0, len(text) - wide) / 4
