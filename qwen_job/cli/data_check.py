"""``qwen-job data check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.data_job import reading_of
from qwen_job.cli.data_options import DATA, FILE, reading_options
from qwen_job.errors import DataError
from qwen_job.text import json_text, visible

if TYPE_CHECKING:
    from qwen_job.data.check import Report

_BAR = 40
# Glyph and colour of each kind of tokens.
_BARS = (("░", None), ("▒", "magenta"), ("▓", "yellow"), ("█", "green"))


@click.command(short_help="Report problems in data files, rule by rule.")
@click.argument("files", nargs=-1, required=True, type=DATA)
@reading_options
@click.option("--limit", type=click.IntRange(0), default=10, show_default=True, help="Rows to show per rule.")
@click.option("--all", "show_all", is_flag=True, help="Show every row.")
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
@click.option("--svg", metavar="FILE", type=FILE, help="Also draw the sample lengths as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(
    files: tuple[str | Path, ...],
    limit: int,
    show_all: bool,
    strict: bool,
    svg: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Report problems in FILES, rule by rule and with row numbers.

    FILES are data files, or one job.yaml: its files are then read as the job would read them. Exits with 4 if there are
    errors. Without --model, tokens are estimated, and rows are not compared with a chat template.
    """
    from qwen_job.data.check import check as run

    reading = reading_of(files, options)
    examiner = reading.examiner()
    reading.show_notes()
    report = run(reading.files, examiner, exact=reading.tokenizer is not None, limit=None if show_all else limit)
    if as_json:
        click.echo(json_text(report.to_dict(), indent=2))
    else:
        _print_report(report, reading.options["max_length"])
    if svg is not None:
        _draw_lengths(report, svg, reading.options["max_length"])
    if report.errors:
        raise DataError(f"{report.bad_rows:,} of {report.rows:,} rows cannot be used for training; correct them, "
                        "or use 'qwen-job data clean' to write a copy without them")  # fmt: skip
    if strict and report.counts.total():
        raise DataError(f"{report.counts.total()} warnings, and --strict counts them as errors")


def _print_report(report: Report, max_length: int) -> None:
    from qwen_job.data.rules import RULES

    for rule, (is_error, meaning) in RULES.items():
        count = report.counts[rule]
        if not count:
            continue
        colour = "red" if is_error else "yellow"
        kind = "error" if is_error else "warning"
        click.echo(f"{click.style(f'{kind} {rule}', fg=colour, bold=True)} {count}: {meaning}")
        shown = [finding for finding in report.findings if finding.rule == rule]
        for finding in shown:
            click.echo(f"  {visible(finding)}")
        if count > len(shown):
            click.echo(f"  ... and {count - len(shown)} more (--all shows them)")
    _print_counts(report)
    _print_lengths(report, max_length)


def _print_counts(report: Report) -> None:
    from qwen_job.data.arrange import COUNTED

    for line in report.contents.lines():
        click.echo(visible(line))
    if not report.schemas_compared:
        click.echo("calls were not compared with the schemas of their tools; to do that: pip install 'qwen-job[data]'")
    for count, what in ((report.arranged[name], what) for name, what in COUNTED.items()):
        if count:
            click.echo(f"{count} {what}")
    for title, found in (
        ("keys not used in training, with the number of rows", report.unused_keys),
        ("added tokens, with the number of conversations that contain them", report.added_tokens),
    ):
        if found:
            click.echo(f"{title}: {', '.join(f'{visible(name, 40)} {count}' for name, count in found.items())}")


def _print_lengths(report: Report, max_length: int) -> None:
    from qwen_job.data.histogram import over, segments, shown_ranges

    values = report.to_dict()
    about = "" if report.exact else " (estimated; use --model for an exact count)"
    bad = f" ({report.bad_rows:,} invalid)" if report.bad_rows else ""
    click.echo(f"{report.rows:,} rows{bad}, {report.turns:,} turns, {report.tokens:,} tokens{about}, "
               f"longest {report.longest:,}")  # fmt: skip
    _print_kinds(report)
    counts, kinds = values["token_histogram"], values["kind_histogram"]
    most, samples = max(counts.values()), sum(counts.values())
    if samples:
        click.echo(f"{'length':>16} {'samples':>9} {'':>6} {'tokens':>6}")
    for edge in shown_ranges(counts) if samples else ():
        count, held = counts[edge], list(kinds[edge].values())
        parts = segments(round(_BAR * count / most), held)
        bar = "".join(click.style(glyph * part, fg=colour) for part, (glyph, colour) in zip(parts, _BARS, strict=True))
        of_tokens = sum(held) / max(report.tokens, 1)
        click.echo(f"{edge:>9} tokens {count:>9,} {count / samples:6.1%} {of_tokens:6.1%} {bar or '▏' * (count > 0)}")
    if samples:
        quantiles = ", ".join(f"{share} up to {length:,}" for share, length in values["quantile_tokens"].items())
        click.echo(f"of the samples: {quantiles} tokens")
    longer, beyond = over(report.lengths, max_length)
    if longer:
        click.echo(f"over {max_length:,} tokens: {longer:,} samples ({longer / samples:.2%}), {beyond:,} tokens beyond "
                   f"it ({beyond / report.tokens:.1%} of all); see data.long_samples")  # fmt: skip


def _print_kinds(report: Report) -> None:
    kinds = {kind: (size, *bar) for (kind, size), bar in zip(report.by_kind.items(), _BARS, strict=True)}
    if report.tokens:
        shown = [f"{click.style(glyph, fg=colour)} {kind} {size:,} ({size / report.tokens:.1%})"
                 for kind, (size, glyph, colour) in kinds.items() if size]  # fmt: skip
        learnt = report.tokens - report.by_kind["prompt"]
        click.echo(f"tokens by kind: {', '.join(shown)}; learnt {learnt:,} ({learnt / report.tokens:.1%})")


def _draw_lengths(report: Report, path: Path, max_length: int) -> None:
    from qwen_job.data.histogram import svg
    from qwen_job.picture import write_svg

    values, about = report.to_dict(), "" if report.exact else " (estimated)"
    title = f"{report.rows} conversations, tokens each{about}; longest {report.longest}, max_length {max_length}"
    write_svg(path, svg(values["token_histogram"], values["kind_histogram"], title=title, max_length=max_length))
