"""Copy a data file without its bad rows, and list what was left out. The original is not changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation
from qwen_job.data.check import Examiner
from qwen_job.data.choose import held_out
from qwen_job.data.repair import repair
from qwen_job.data.row_files import Write, refuse_target, rows_into
from qwen_job.data.rows import read_rows
from qwen_job.data.rules import RULES, RowFinding
from qwen_job.errors import DataError, EnvironmentFault, UsageError

DROPPED_BY_DEFAULT = ("malformed", "order", "encoding", "duplicate", "secret", "personal", "result_without_call")
# Rows with these findings may be right once they are repaired.
_REPAIRABLE = frozenset({"malformed", "result_order"})
_BATCH = 256


class HoldOut(NamedTuple):
    """The share of the good rows to write to another file, about equally from every part of the data."""

    share: float
    target: Path


@dataclass
class Cleaned:
    """How many rows were kept (``held_out`` of them apart), repaired and dropped, with counts by repair and by rule."""

    kept: int = 0
    held_out: int = 0
    repaired: int = 0
    dropped: int = 0
    by_repair: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)
    dropped_list: Path = Path()


def clean(
    source: Path,
    target: Path,
    examiner: Examiner,
    *,
    drop: set[str] | None = None,
    hold_out: HoldOut | None = None,
    force: bool = False,
) -> Cleaned:
    """Copy the good rows of ``source`` to ``target``: .json a list, .jsonl lines; .gz and .zst compress them.

    Rows with a finding of a rule in ``drop`` are left out and listed in ``TARGET.dropped.jsonl``; the others are
    repaired (see REPAIRS). Rows that cannot be trained on are always left out. Of the good rows, ``hold_out`` writes a
    share to another file. All files appear complete or not at all; the source is never written.

    Raises:
        UsageError: ``target`` exists (unless ``force``), or cannot be written as its suffix says.
        DataError: no row is left, or none is held out.
    """
    drop = (set(DROPPED_BY_DEFAULT) if drop is None else drop) | {rule for rule in RULES if RULES[rule][0]}
    listed = target.with_name(target.name + ".dropped.jsonl")
    try:
        _refuse_overwriting(source, [target, listed, *([hold_out.target] if hold_out else [])], force)
    except OSError as error:
        raise EnvironmentFault(f"{target}: cannot be written: {error.strerror}; name another folder") from error
    result = Cleaned(dropped_list=listed)
    with ExitStack() as files:
        write_row, list_row = files.enter_context(rows_into(target)), files.enter_context(rows_into(listed))
        write_held = files.enter_context(rows_into(hold_out.target)) if hold_out else write_row
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
                    _list(list_row, bad, result)
                    continue
                result.kept += 1
                result.repaired += bool(done)
                result.by_repair.update(done)
                held = hold_out is not None and held_out(hold_out.share, 0, result.kept)
                result.held_out += held
                (write_held if held else write_row)(fixed)
        if result.kept == result.held_out:
            raise DataError(f"{source}: no row is left after cleaning; see 'qwen-job data check {source}'")
        if hold_out and not result.held_out:
            raise DataError(f"{source}: {hold_out.share:g} of {result.kept:,} rows is less than one row; hold out more")
    return result


def _against(
    source: Path, row: int, conversation: Conversation | None, found: list[RowFinding], drop: set[str]
) -> list[RowFinding]:
    """Return the findings for which a row is left out."""
    bad = [finding for finding in found if finding.rule in drop]
    if conversation is None and not bad:  # left out by turn_order
        bad = [RowFinding(str(source), row, "order", "turns", "hold no assistant answer to learn from")]
    return bad


def _refuse_overwriting(source: Path, written: Sequence[Path], force: bool) -> None:
    if len({path.resolve() for path in written}) < len(written):
        raise UsageError(f"{written[-1]}: is written by this command already; give another name for the held-out rows")
    for path in written:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: is the original, which is never changed; give another name")
        refuse_target(path, force=force)


def _list(write: Write, bad: list[RowFinding], result: Cleaned) -> None:
    result.dropped += 1
    result.by_rule.update({finding.rule for finding in bad})
    for finding in bad:
        write(finding._asdict())
