"""``qwen-job data``."""

from __future__ import annotations

import sys
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.cli.job_options import FiniteRange
from qwen_job.errors import DataError, UsageError
from qwen_job.facts import choices
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT
from qwen_job.text import json_text, show_path, visible

if TYPE_CHECKING:
    from qwen_job.data.check import Examiner, Report

_FILE = click.Path(path_type=Path)
_BAR = 40


@click.group(short_help="Check, clean and prepare conversations.")
def data() -> None:
    """Check, clean and prepare conversations.

    Reads the format of Qwen's finetune.py ([{"id", "conversations": [{"from", "value"}]}]), ShareGPT, messages, Alpaca
    and query/response, as JSON, JSON Lines (also .gz and .zst) or Parquet.
    """


def _layout_options(command: Any) -> Any:
    for option in (
        click.option(
            "--format",
            "layout",
            type=click.Choice(get_args(choices.Format)),
            default="auto",
            help="Format of the rows.",
        ),
        click.option(
            "--turn-order",
            type=click.Choice(get_args(choices.TurnOrder)),
            default="strict",
            show_default=True,
            help="What to do with turns that do not alternate: reject them, treat them as finetune.py does, or join "
            "them (data.turn_order).",
        ),
        click.option(
            "--ignore-key",
            "ignore_keys",
            multiple=True,
            metavar="KEY",
            help="Ignore this key in rows and turns (repeatable; data.ignore_keys).",
        ),
    ):
        command = option(command)
    return command


def _reading_options(command: Any) -> Any:
    for option in (
        _layout_options,
        click.option("--tokenizer", type=_FILE, help="Folder with tokenizer.json, to count tokens exactly."),
        click.option(
            "--max-turn-tokens", type=click.IntRange(1), default=512, show_default=True, help="Maximum tokens per turn."
        ),
        click.option(
            "--max-length",
            type=click.IntRange(1),
            default=MAX_LENGTH,
            show_default=True,
            help="Maximum tokens per row.",
        ),
    ):
        command = option(command)
    return command


def _examiner(
    layout: str,
    tokenizer: Path | None,
    max_turn_tokens: int,
    max_length: int,
    turn_order: str,
    ignore_keys: tuple[str, ...],
) -> Examiner:
    from qwen_job.data.check import Examiner
    from qwen_job.data.rules import Limits

    loaded = None
    if tokenizer is not None:
        from qwen_job.data.encoder import load_encoder

        loaded = load_encoder(tokenizer)
    limits = Limits(max_turn_tokens, max_length)
    return Examiner(layout, limits, loaded, turn_order=turn_order, ignore_keys=ignore_keys)


@data.command(short_help="Report problems in data files, rule by rule.")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@_reading_options
@click.option("--limit", type=click.IntRange(0), default=10, show_default=True, help="Rows to show per rule.")
@click.option("--all", "show_all", is_flag=True, help="Show every row.")
@click.option("--strict", is_flag=True, help="Count warnings as errors.")
@click.option("--svg", metavar="FILE", type=_FILE, help="Also draw the sample lengths as SVG.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(
    files: tuple[Path, ...],
    layout: str,
    tokenizer: Path | None,
    max_turn_tokens: int,
    max_length: int,
    turn_order: str,
    ignore_keys: tuple[str, ...],
    limit: int,
    show_all: bool,
    strict: bool,
    svg: Path | None,
    as_json: bool,
) -> None:
    """Report problems in FILES, rule by rule and with row numbers.

    Exits with 4 if there are errors.
    """
    from qwen_job.data.check import check as run

    examiner = _examiner(layout, tokenizer, max_turn_tokens, max_length, turn_order, ignore_keys)
    report = run(files, examiner, exact=tokenizer is not None, limit=None if show_all else limit)
    if as_json:
        click.echo(json_text(report.to_dict(), indent=2))
    else:
        _print_report(report)
    if svg is not None:
        _draw_lengths(report, svg, max_length)
    if report.errors:
        raise DataError(f"{report.bad_rows} of {report.rows} rows cannot be used for training; correct them, "
                        "or use 'qwen-job data clean' to write a copy without them")  # fmt: skip
    if strict and report.counts.total():
        raise DataError(f"{report.counts.total()} warnings, and --strict counts them as errors")


def _print_report(report: Report) -> None:
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
    _print_lengths(report)


def _print_counts(report: Report) -> None:
    from qwen_job.data.arrange import COUNTED

    for count, what in ((report.arranged[name], what) for name, what in COUNTED.items()):
        if count:
            click.echo(f"{count} {what}")
    for title, found in (
        ("keys not used in training, with the number of rows", report.unused_keys),
        ("added tokens, with the number of conversations that contain them", report.added_tokens),
    ):
        if found:
            click.echo(f"{title}: {', '.join(f'{visible(name, 40)} {count}' for name, count in found.items())}")


def _print_lengths(report: Report) -> None:
    values = report.to_dict()
    about = "" if report.exact else " (estimated; use --tokenizer for an exact count)"
    click.echo(f"{report.rows} conversations, {report.turns} turns, {report.tokens} tokens{about}, "
               f"longest {report.longest}")  # fmt: skip
    filled = [number for number, count in enumerate(report.histogram) if count]
    most = max(report.histogram, default=0)
    for number, (edge, count) in enumerate(values["token_histogram"].items()):
        if filled and filled[0] <= number <= filled[-1]:
            bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
            click.echo(f"{edge:>8} tokens {count:>9} {count / report.rows:6.1%} {bar}")


def _draw_lengths(report: Report, path: Path, max_length: int) -> None:
    from qwen_job.data.histogram import svg
    from qwen_job.picture import write_svg

    about = "" if report.exact else " (estimated)"
    title = f"{report.rows} conversations, tokens each{about}; longest {report.longest}, max_length {max_length}"
    write_svg(path, svg(report.to_dict()["token_histogram"], title=title, max_length=max_length))


@data.command(short_help="Write a cleaned copy and a list of the dropped rows.")
@click.argument("source", type=_FILE)
@click.argument("target", type=_FILE)
@_reading_options
@click.option("--drop", multiple=True, metavar="RULE", help="Also drop rows that break this rule (repeatable).")
@click.option("--keep", multiple=True, metavar="RULE", help="Keep rows that break this rule (repeatable).")
@click.option("--force", is_flag=True, help="Replace TARGET if it exists. SOURCE is never changed.")
def clean(
    source: Path,
    target: Path,
    layout: str,
    tokenizer: Path | None,
    max_turn_tokens: int,
    max_length: int,
    turn_order: str,
    ignore_keys: tuple[str, ...],
    drop: tuple[str, ...],
    keep: tuple[str, ...],
    force: bool,
) -> None:
    """Copy the good rows of SOURCE to TARGET, and list the others with reasons in TARGET.dropped.jsonl.

    The extension of TARGET sets the format: .json for a list, .jsonl for lines, plus .gz or .zst to compress.
    Rows with errors, duplicates, likely secrets or personal data are dropped; change this with --drop and --keep.
    Control characters are removed from the remaining rows, which are otherwise unchanged: pass the same --turn-order
    and --ignore-key settings to training.
    """
    from qwen_job.data.clean import DROPPED_BY_DEFAULT
    from qwen_job.data.clean import clean as run

    rules = (set(DROPPED_BY_DEFAULT) | _known(drop)) - _known(keep)
    examiner = _examiner(layout, tokenizer, max_turn_tokens, max_length, turn_order, ignore_keys)
    result = run(source, target, examiner, drop=rules, force=force)
    reasons = ", ".join(f"{rule} {count}" for rule, count in sorted(result.by_rule.items())) or "nothing"
    click.echo(f"kept {result.kept} (repaired {result.repaired}), dropped {result.dropped}: {reasons}", err=True)
    click.echo(f"dropped rows are listed in {result.dropped_list}", err=True)
    show_path(target)


def _known(rules: tuple[str, ...]) -> set[str]:
    from qwen_job.data.rules import RULES
    from qwen_job.text import did_you_mean

    for rule in rules:
        if rule not in RULES:
            raise UsageError(f"no such rule: {rule!r} (rules: {', '.join(RULES)}){did_you_mean(rule, RULES)}")
    return set(rules)


@data.command(short_help="Tokenize and pack data once, for all ranks and later runs.")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--tokenizer", type=_FILE, required=True, help="Folder with the model's tokenizer.json.")
@click.option("--output", type=_FILE, required=True, help="Cache folder (data.cache_dir).")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=FiniteRange(0, MAX_WEIGHT, min_open=True),
    help="Times each conversation of a file appears per epoch; give once per file, in the same order.  [default: 1]",
)
@click.option("--eval", "eval_files", multiple=True, type=_FILE, help="Held-out file (repeatable).")
@click.option(
    "--eval-split", type=float, default=0.0, help="Hold out this fraction of the data instead of using a file."
)
@_layout_options
@click.option(
    "--system-prompt", default=SYSTEM_PROMPT, show_default=True, help="System prompt for conversations without one."
)
@click.option("--max-length", type=int, default=MAX_LENGTH, show_default=True, help="Maximum tokens per row.")
@click.option(
    "--long-samples",
    type=click.Choice(get_args(choices.LongSamples)),
    default="truncate",
    show_default=True,
    help="What to do with conversations over --max-length.",
)
@click.option(
    "--mask",
    type=click.Choice(get_args(choices.Mask)),
    default="assistant",
    show_default=True,
    help="Which tokens are trained on.",
)
@click.option(
    "--packing/--no-packing", default=True, show_default=True, help="Pack several conversations into each row."
)
@click.option("--workers", type=click.IntRange(1), help="Number of processes (default: the cores of this machine).")
@click.option("--json", "as_json", is_flag=True, help="Print the folder and statistics as JSON.")
def prepare(
    files: tuple[Path, ...],
    tokenizer: Path,
    output: Path,
    weights: tuple[float, ...],
    eval_files: tuple[Path, ...],
    eval_split: float,
    layout: str,
    turn_order: str,
    ignore_keys: tuple[str, ...],
    system_prompt: str,
    max_length: int,
    long_samples: str,
    mask: str,
    packing: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """Tokenize and pack FILES into memory-mapped rows in a folder below OUTPUT, and print that folder.

    The folder's name is a hash of the files, the settings and the tokenizer, so the same input is found again at once.
    A job with data.cache_dir set to OUTPUT and the same settings starts training without preparing anything.
    """
    from qwen_job.data import open_prepared
    from qwen_job.data import prepare_data as run
    from qwen_job.data.prepared import describe

    if weights and len(weights) != len(files):
        raise UsageError(
            f"--weight: given {len(weights)} times for {len(files)} files; give it once per file, or not at all"
        )
    from qwen_job.run.sections import DataSpec

    values: dict[str, Any] = {
        "train": tuple(
            {"path": path.absolute(), "weight": weight}
            for path, weight in zip(files, weights or repeat(1.0), strict=False)
        ),
        "eval": [path.absolute() for path in eval_files],
        "eval_split": eval_split,
        "format": layout,
        "system_prompt": system_prompt,
        "max_length": max_length,
        "long_samples": long_samples,
        "packing": packing,
        "mask": mask,
        "turn_order": turn_order,
        "ignore_keys": ignore_keys,
    }
    folder = run(DataSpec.read(values), tokenizer, output, workers=workers, progress=_progress())
    stats = open_prepared(folder).stats
    if sys.stderr.isatty():
        click.echo(err=True)
    if as_json:
        click.echo(json_text({"folder": str(folder), "stats": stats}, indent=2))
        return
    for split in ("train", "eval"):
        figures = stats[split]
        if figures["samples"]:
            click.echo(f"{split}: {figures['samples']} samples, {figures['tokens']} tokens in {figures['rows']} rows "
                       f"({figures['filled']:.1%} full), {figures['trained_tokens']} trained", err=True)  # fmt: skip
    for line in describe(stats):
        click.echo(visible(line), err=True)
    show_path(folder)


def _progress() -> Any:
    def show(samples: int) -> None:
        click.echo(f"\r{samples} samples", nl=False, err=True)

    return show if sys.stderr.isatty() else None
