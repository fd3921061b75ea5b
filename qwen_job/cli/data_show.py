"""``qwen-job data show``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.data_job import reading_of
from qwen_job.cli.data_options import DATA, chat_options, layout_options, model_option
from qwen_job.errors import UsageError
from qwen_job.text import json_text, visible, visible_lines

if TYPE_CHECKING:
    from qwen_job.chat.samples import Piece, SampleMaker
    from qwen_job.data.show import ShownRow, SizedSample
    from qwen_job.job import Job

# How learnt text looks by its kind, and everything else.
_LEARNT = {"reasoning": "magenta", "call": "yellow", "answer": "green"}
_OPEN, _CLOSE = "⟦", "⟧"
_WIDEST = 100


@click.command(short_help="Show one row as the model sees it, with what is learnt.")
@click.argument("named", metavar="FILE", type=DATA)
@click.argument("row", type=click.IntRange(1), default=1)
@click.option("--file", "number", type=click.IntRange(1), default=1, help="Which file of a job  [default: its first].")
@model_option
@chat_options
@layout_options
@click.option("--json", "as_json", is_flag=True, help="Print the samples as JSON.")
def show(named: str | Path, row: int, number: int, as_json: bool, **options: Any) -> None:
    """Show row ROW of FILE (counted from 1) as the model sees it, with what is learnt of it.

    FILE is a data file, or a job.yaml, whose model and settings are then used. Learnt text is coloured by its kind;
    without colour (in a pipe, or with NO_COLOR), it is in brackets. Without a model, the text has ChatML's frame, and
    sizes are in characters. A row that cannot be trained on ends with 4.
    """
    from qwen_job.data.show import show_row

    reading = reading_of([named], options)
    reading.quick = True
    if number > len(reading.files):
        raise UsageError(f"--file: {named} has {len(reading.files)} data files, not {number}")
    path, tokenizer = reading.files[number - 1], reading.tokenizer
    shown = show_row(path, row, reading.examiner(), reading.any_maker, tokenizer)
    if reading.job and tokenizer:
        shown = shown._replace(notes=(*shown.notes, *_too_long(shown, reading.job)))
    reading.show_notes()
    if as_json:
        click.echo(json_text(_as_json(path, row, shown, tokenizer is not None), indent=2))
        return
    _print_row(shown, _heading(path, row, shown, reading.any_maker), "tokens" if tokenizer else "characters")


def _too_long(shown: ShownRow, job: Job) -> Iterator[str]:
    longest = job.train.model_max_length
    for number, sample in enumerate(shown.samples, 1):
        total = sample.amounts()["total"]
        if total > longest:
            yield (f"sample {number} has {total:,} tokens, more than train.model_max_length {longest:,}: "
                   f"data.long_samples: {job.data.long_samples} decides what is trained of it")  # fmt: skip


def _heading(file: Path, row: int, shown: ShownRow, maker: SampleMaker) -> str:
    conversation = shown.conversation
    parts = [f"{file}:{row}", *([f"id {conversation.id}"] if conversation.id else [])]
    parts += [_counted(len(conversation.turns), "turn")]
    parts += [_counted(len(conversation.tools), "tool")] if conversation.tools else []
    return " · ".join([*parts, f"template: {maker.template.source}"])


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _as_json(file: Path, row: int, shown: ShownRow, exact: bool) -> dict[str, Any]:
    return {
        "file": str(file),
        "row": row,
        "unit": "tokens" if exact else "characters",
        "samples": [
            {
                "amounts": sample.amounts(),
                "pieces": [
                    {**piece._asdict(), "size": size} for piece, size in zip(sample.pieces, sample.sizes, strict=True)
                ],
            }
            for sample in shown.samples
        ],
        "notes": list(shown.notes),
        "findings": [finding._asdict() for finding in shown.findings],
    }


def _print_row(shown: ShownRow, heading: str, unit: str) -> None:
    """Print a row's samples, learnt text in colour or in brackets."""
    colour = _has_colour()
    click.echo(click.style(visible(heading), bold=True))
    for number, sample in enumerate(shown.samples, 1):
        which = f"sample {number} of {len(shown.samples)}: " if len(shown.samples) > 1 else ""
        click.echo(_rule(f"{which}{_amounts(sample, unit)}"))
        click.echo("".join(_coloured(sample.pieces) if colour else _bracketed(sample.pieces)).rstrip("\n"))
    click.echo(_rule(_legend(colour)))
    for note in shown.notes:
        click.echo(f"{click.style('note:', fg='cyan')} {visible(note)}")
    for finding in shown.findings:
        click.echo(
            f"{click.style(f'warning {finding.rule}:', fg='yellow')} {visible(f'{finding.field}: {finding.message}')}"
        )


def _amounts(sample: SizedSample, unit: str) -> str:
    amounts = sample.amounts()
    total, learnt = amounts.pop("total"), amounts.pop("learnt")
    kinds = ", ".join(f"{kind} {size:,}" for kind, size in amounts.items())
    return f"{total:,} {unit}: {kinds}; learnt {learnt:,} ({learnt / max(total, 1):.0%})"


def _rule(text: str) -> str:
    """Return a line that sets off what is the program's from what is the conversation's."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return click.style(f"── {text} " + "─" * max(0, width - 4 - len(click.unstyle(text))), dim=True)


def _legend(colour: bool) -> str:
    if not colour:
        return f"{_OPEN}...{_CLOSE} is learnt"
    return "learnt: " + ", ".join(click.style(kind, fg=shade) for kind, shade in _LEARNT.items())


def _has_colour() -> bool:
    wanted = click.get_current_context().find_root().color
    return wanted is not False and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _coloured(pieces: Iterable[Piece]) -> Iterator[str]:
    for piece in pieces:
        text = visible_lines(piece.text, None)
        if piece.learnt:
            yield click.style(text, fg=_LEARNT.get(piece.kind, "green"), bold=piece.control or None)
        else:
            yield click.style(text, fg="cyan" if piece.control else None, dim=True)


def _bracketed(pieces: Iterable[Piece]) -> Iterator[str]:
    for learnt, run in groupby(pieces, lambda piece: piece.learnt):
        text = "".join(visible_lines(piece.text, None) for piece in run)
        yield f"{_OPEN}{text}{_CLOSE}" if learnt else text
