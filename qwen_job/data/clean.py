"""Copy a data file without its bad rows, and list what was left out. The original is not changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from qwen_job.chat.conversation import Conversation
from qwen_job.data.check import Examiner
from qwen_job.data.compress import ZSTD, packed_into, zstd_module
from qwen_job.data.repair import repair
from qwen_job.data.rows import read_rows
from qwen_job.data.rules import RULES, RowFinding
from qwen_job.errors import DataError, EnvironmentFault, UsageError

DROPPED_BY_DEFAULT = ("malformed", "order", "encoding", "duplicate", "secret", "personal", "result_without_call")
# Rows with these findings may be right once they are repaired.
_REPAIRABLE = frozenset({"malformed", "result_order"})
_BATCH = 256
_FORMAT = re.compile(r"\.(jsonl?)(\.(gz|zst|zstd))?$")


@dataclass
class Cleaned:
    """How many rows were kept, repaired (see REPAIRS) and dropped, with counts by repair and by rule."""

    kept: int = 0
    repaired: int = 0
    dropped: int = 0
    by_repair: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)
    dropped_list: Path = Path()


def clean(
    source: Path, target: Path, examiner: Examiner, *, drop: set[str] | None = None, force: bool = False
) -> Cleaned:
    """Copy the good rows of ``source`` to ``target``: .json a list, .jsonl lines; .gz and .zst compress them.

    Rows with a finding of a rule in ``drop`` are left out and listed in ``TARGET.dropped.jsonl``; the others are
    repaired (see REPAIRS). Rows that cannot be trained on are always left out. Both files appear complete or not at
    all; the source is never written.

    Raises:
        UsageError: ``target`` exists (unless ``force``), or cannot be written as its suffix says.
        DataError: no row is left.
    """
    drop = (set(DROPPED_BY_DEFAULT) if drop is None else drop) | {rule for rule in RULES if RULES[rule][0]}
    listed = target.with_name(target.name + ".dropped.jsonl")
    try:
        _refuse_overwriting(source, target, listed, force)
    except OSError as error:
        raise EnvironmentFault(f"{target}: cannot be written: {error.strerror}; name another folder") from error
    result = Cleaned(dropped_list=listed)
    with _written_aside(target) as rows_out, _written_aside(listed) as list_out:
        write_row = _array_writer(rows_out) if _is_array(target) else _line_writer(rows_out)
        rows = read_rows(source)
        while batch := list(islice(rows, _BATCH)):
            for (row, value), (_, conversation, _, found) in zip(batch, examiner.examine(source, batch), strict=True):
                bad = _against(source, row, conversation, found, drop)
                fixed, done = repair(value) if {finding.rule for finding in bad} <= _REPAIRABLE else (value, set[str]())
                if done:
                    # Without those characters it may be empty, a duplicate, or show a secret.
                    [(_, conversation, _, found)] = examiner.examine(source, [(row, fixed)])
                    bad = _against(source, row, conversation, found, drop)
                if bad:
                    _list(list_out, bad, result)
                else:
                    result.kept += 1
                    result.repaired += bool(done)
                    result.by_repair.update(done)
                    write_row(fixed)
        if _is_array(target):
            rows_out.write(b"\n]\n" if result.kept else b"[]\n")
        if not result.kept:
            raise DataError(f"{source}: no row is left after cleaning; see 'qwen-job data check {source}'")
    return result


def _against(
    source: Path, row: int, conversation: Conversation | None, found: list[RowFinding], drop: set[str]
) -> list[RowFinding]:
    """Return the findings for which a row is left out."""
    bad = [finding for finding in found if finding.rule in drop]
    if conversation is None and not bad:  # left out by turn_order
        bad = [RowFinding(str(source), row, "order", "turns", "hold no assistant answer to learn from")]
    return bad


def _refuse_overwriting(source: Path, target: Path, listed: Path, force: bool) -> None:
    for path in (target, listed):
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{target}: is the original, which is never changed; give another name")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not force:
            raise UsageError(f"{path}: already exists; give another name, or --force to replace it")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent}: is not a folder; create it first")
    if not _FORMAT.search(target.name):
        raise UsageError(f"{target}: cannot be written as its suffix says; "
                         "name it .json or .jsonl, or one of these with .gz or .zst")  # fmt: skip
    if target.suffix in ZSTD:
        zstd_module(target)


def _is_array(target: Path) -> bool:
    found = _FORMAT.search(target.name)
    return found is not None and found[1] == "json"


@contextlib.contextmanager
def _written_aside(path: Path) -> Iterator[IO[bytes]]:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("xb") as raw:
            with packed_into(raw, path.suffix) as stream:
                yield stream
            raw.flush()
            os.fsync(raw.fileno())
        aside.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _array_writer(stream: IO[bytes]) -> Any:
    first = True

    def write(value: Any) -> None:
        nonlocal first
        stream.write((b"[\n" if first else b",\n") + _json(value))
        first = False

    return write


def _line_writer(stream: IO[bytes]) -> Any:
    return lambda value: stream.write(_json(value) + b"\n")


def _json(value: Any) -> bytes:
    # Half of a surrogate pair (in an id, say) becomes its JSON escape.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def _list(stream: IO[bytes], bad: list[RowFinding], result: Cleaned) -> None:
    result.dropped += 1
    result.by_rule.update({finding.rule for finding in bad})
    for finding in bad:
        stream.write(_json(finding._asdict()) + b"\n")
