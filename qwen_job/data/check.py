"""Read all rows of some files and report, rule by rule, what is wrong with them."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.samples import SampleMaker
from qwen_job.data.arrange import COUNTED
from qwen_job.data.contents import Contents
from qwen_job.data.encode import ChatTokenizer, texts_of
from qwen_job.data.histogram import quantiles
from qwen_job.data.rows import read_rows
from qwen_job.data.rules import RULES, Limits, RowFinding, inspect, lengths, read
from qwen_job.data.sample_sizes import SampleSizer
from qwen_job.data.schemas import ToolSchemas
from qwen_job.data.sizes import KINDS, Sizes, TextSizer
from qwen_job.data.tool_rules import has_tools, tool_findings
from qwen_job.data.vocabulary import token_finder

BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
_BATCH = 256


@dataclass
class Report:
    """What was found in some files.

    ``counts`` has every rule, ``findings`` the first of each rule (see ``check``). ``histogram`` counts samples by
    tokens, up to each of BUCKETS and above, ``kinds`` their tokens of each of KINDS, and ``lengths`` samples by their
    exact length; ``exact``: a tokenizer counted the tokens, they are not estimated. ``unused_keys``: for each key that
    training ignores, the rows that have it; ``added_tokens``: for each token added to the tokenizer, the conversations
    that have it; ``arranged``: what ``turn_order`` changed; ``contents``: reasoning, tools and so on;
    ``schemas_compared``: false if tools were not compared with their schemas, for want of a package.
    """

    rows: int = 0
    bad_rows: int = 0
    turns: int = 0
    tokens: int = 0
    longest: int = 0
    exact: bool = False
    schemas_compared: bool = True
    counts: Counter[str] = field(default_factory=Counter)
    unused_keys: Counter[str] = field(default_factory=Counter)
    added_tokens: Counter[str] = field(default_factory=Counter)
    arranged: Counter[str] = field(default_factory=Counter)
    contents: Contents = field(default_factory=Contents)
    findings: list[RowFinding] = field(default_factory=list)
    histogram: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    kinds: list[list[int]] = field(default_factory=lambda: [[0] * len(KINDS) for _ in range(len(BUCKETS) + 1)])
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def errors(self) -> int:
        """Number of findings that keep their row from being trained on."""
        return sum(self.counts[rule] for rule, (is_error, _) in RULES.items() if is_error)

    @property
    def by_kind(self) -> dict[str, int]:
        """Return the tokens of each of KINDS; all but the prompt are learnt."""
        return {kind: sum(bucket[number] for bucket in self.kinds) for number, kind in enumerate(KINDS)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        edges = [f"<={edge}" for edge in BUCKETS] + [f">{BUCKETS[-1]}"]
        return {
            "rows": self.rows,
            "bad_rows": self.bad_rows,
            "turns": self.turns,
            "tokens": self.tokens,
            "tokens_exact": self.exact,
            "longest_sample_tokens": self.longest,
            "quantile_tokens": quantiles(self.lengths),
            "errors": self.errors,
            "counts": {rule: self.counts[rule] for rule in RULES},
            "unused_keys": dict(self.unused_keys),
            "added_tokens": dict(self.added_tokens),
            "arranged": {name: self.arranged[name] for name in COUNTED},
            "schemas_compared": self.schemas_compared,
            "contents": self.contents.to_dict(),
            "token_histogram": dict(zip(edges, self.histogram, strict=True)),
            "tokens_by_kind": self.by_kind,
            "kind_histogram": {
                edge: dict(zip(KINDS, kinds, strict=True)) for edge, kinds in zip(edges, self.kinds, strict=True)
            },
            "findings": [finding._asdict() for finding in self.findings],
        }


class Examiner:
    """Examines row after row; remembers a fingerprint of each conversation to find duplicates.

    With ``maker``, rows that its chat template refuses have an error, and samples are measured as it makes them.
    It also decides, in place of ``thinking`` (data.thinking), whether ``<think>`` in a text is read as reasoning.
    """

    def __init__(
        self,
        layout: str = "auto",
        limits: Limits | None = None,
        tokenizer: ChatTokenizer | None = None,
        maker: SampleMaker | None = None,
        *,
        turn_order: str = "strict",
        ignore_keys: Sequence[str] = (),
        thinking: str = "keep",
    ):
        self._layout, self._limits = layout, limits or Limits()
        self._sizer = SampleSizer(maker, tokenizer) if maker else TextSizer(tokenizer)
        self._turn_order, self._ignored = turn_order, frozenset(ignore_keys)
        self._thinking = maker.settler.reads if maker else thinking
        self._seen: dict[bytes, tuple[str, int]] = {}
        self.ignore_keys = tuple(ignore_keys)
        self.own_tokens = tokenizer.text_tokens if tokenizer else ()
        self.arranged: Counter[str] = Counter()
        self.schemas = ToolSchemas()

    def examine(
        self, file: Path, rows: Sequence[tuple[int, Any]]
    ) -> Iterator[tuple[int, Conversation | None, Sizes | None, list[RowFinding]]]:
        """Yield (row, conversation or None, its sizes, findings) for rows of one file."""
        how = (self._layout, self._turn_order, self._ignored, self.arranged, self._thinking)
        parsed = [(row, *read(value, *how)) for row, value in rows]
        measured = self._sizer.measure([conversation for _, conversation, _ in parsed if conversation])
        for row, conversation, found in parsed:
            sizes = next(measured) if conversation else None
            if conversation and sizes:
                found += inspect(conversation, self.own_tokens, self._thinking == "as_written")
                if has_tools(conversation):
                    found += tool_findings(conversation, self.schemas)
                if sizes.refused:
                    found.append(("template", *sizes.refused))
                found += lengths(conversation, sizes, self._limits)
                found += self._duplicate(conversation, str(file), row)
            yield row, conversation, sizes, [RowFinding(str(file), row, *parts) for parts in found]

    def _duplicate(self, conversation: Conversation, file: str, row: int) -> Iterator[tuple[str, str, str]]:
        parts = [
            conversation.system or "",
            *(part.strip() for turn in conversation.turns for part in (turn.role, turn.text)),
            *_beside_text(conversation),
        ]
        digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        first_file, first_row = self._seen.setdefault(digest, (file, row))
        if (first_file, first_row) != (file, row):
            where = f"row {first_row}" if first_file == file else f"{first_file}:{first_row}"
            yield "duplicate", "conversation", f"is the same as {where}; keep one, or use weight to repeat a file"


def _beside_text(conversation: Conversation) -> Iterator[str]:
    """Yield what else makes two conversations different; nothing for a plain one."""
    if conversation.tools or conversation.options:
        yield json.dumps([conversation.tools, conversation.options], sort_keys=True)
    for number, turn in enumerate(conversation.turns):
        if turn.reasoning or turn.calls:
            yield json.dumps([number, turn.reasoning, [call[:2] for call in turn.calls]], sort_keys=True)


def check(files: Sequence[Path], examiner: Examiner, *, exact: bool = False, limit: int | None = 10) -> Report:
    """Examine all rows of ``files``; keep the first ``limit`` findings of each rule (None: all of them)."""
    report = Report(exact=exact, arranged=examiner.arranged)
    report.unused_keys.update(dict.fromkeys(examiner.ignore_keys, 0))
    find_tokens = token_finder(examiner.own_tokens)
    for file in files:
        rows = read_rows(file)
        while batch := list(islice(rows, _BATCH)):
            for _, conversation, sizes, findings in examiner.examine(file, batch):
                _add(report, conversation, sizes, findings, limit)
                if conversation:
                    report.unused_keys.update(set(conversation.unused))
                    report.added_tokens.update(find_tokens(text for _, text in texts_of(conversation, "")))
    report.schemas_compared = not report.contents.with_tools or examiner.schemas.available
    return report


def _add(
    report: Report,
    conversation: Conversation | None,
    sizes: Sizes | None,
    findings: list[RowFinding],
    limit: int | None,
) -> None:
    report.rows += 1
    report.bad_rows += any(finding.is_error for finding in findings)
    for finding in findings:
        report.counts[finding.rule] += 1
        if limit is None or report.counts[finding.rule] <= limit:
            report.findings.append(finding)
    if conversation and sizes:
        report.turns += len(conversation.turns)
        report.contents.add(conversation)
        for kinds in sizes.samples:
            _add_sample(report, kinds)


def _add_sample(report: Report, kinds: Sequence[int]) -> None:
    total = sum(kinds)
    report.tokens += total
    report.longest = max(report.longest, total)
    report.lengths[total] += 1
    bucket = bisect_left(BUCKETS, total)
    report.histogram[bucket] += 1
    held = report.kinds[bucket]
    for kind, tokens in enumerate(kinds):
        held[kind] += tokens
