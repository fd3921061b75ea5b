"""``qwen-job data clean``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qwen_job.cli.data_job import Reading
from qwen_job.cli.data_options import DATA, FILE, file_of, reading_options
from qwen_job.errors import UsageError
from qwen_job.text import show_path

# What people call a rule whose name is spelt in no similar way.
_OTHER_NAMES = {
    "too_long": "long_sample",
    "toolong": "long_sample",
    "length": "long_sample",
    "max_length": "long_sample",
}


class _Share(click.FloatRange):
    """A share between 0 and 1; of a percentage, the refusal names the number to write."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.UsageError: it is none, or out of range.
        """
        text = str(value)
        if text.endswith("%") and text[:-1].replace(".", "", 1).isdecimal():
            self.fail(f"{text!r} is a percentage; write {float(text[:-1]) / 100:.12g}", param, ctx)
        return super().convert(value, param, ctx)


class _WithRules(click.Command):
    """Lists the rules at the end of its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a table of the rules: what breaks each, and whether such rows are dropped."""
        from qwen_job.data.clean import DROPPED_BY_DEFAULT
        from qwen_job.data.rules import RULES

        rows = []
        for rule, (is_error, meaning) in RULES.items():
            fate = "always dropped" if is_error else "dropped" if rule in DROPPED_BY_DEFAULT else ""
            rows.append((rule, f"{meaning} [{fate}]" if fate else meaning))
        with formatter.section("Rules"):
            formatter.write_dl(rows)


@click.command(cls=_WithRules, short_help="Write a cleaned copy and a list of the dropped rows.")
@click.argument("source", type=DATA)
@click.argument("target", type=FILE)
@reading_options
@click.option(
    "--drop", multiple=True, metavar="RULE", help="Also drop rows with this finding (repeatable; rules below)."
)
@click.option(
    "--keep", multiple=True, metavar="RULE", help="Keep rows with this finding, unless it is an error (repeatable)."
)
@click.option(
    "--hold-out",
    type=(_Share(0, 1, min_open=True, max_open=True), FILE),
    metavar="SHARE FILE",
    help="Write this share of the good rows to FILE in place of TARGET, for data.eval: 0.02 held-out.jsonl.",
)
@click.option("--force", is_flag=True, help="Replace TARGET if it exists. SOURCE is never changed.")
def clean(
    source: str | Path,
    target: Path,
    drop: tuple[str, ...],
    keep: tuple[str, ...],
    hold_out: tuple[float, Path] | None,
    force: bool,
    **options: Any,
) -> None:
    """Copy the good rows of SOURCE to TARGET, and list the others with reasons in TARGET.dropped.jsonl.

    The extension of TARGET sets the format: .json for a list, .jsonl for lines, plus .gz or .zst to compress.
    Rows with errors, duplicates, likely secrets or personal data are dropped; change this with --drop and --keep.
    In the remaining rows, control characters are removed, numbers that are not finite become null, arguments of calls
    that were converted to JSON twice are converted back, and results of tools are put in the order of their calls. They
    are otherwise unchanged: pass the same --turn-order and --ignore-key settings to training.
    """
    from qwen_job.data.clean import DROPPED_BY_DEFAULT, HoldOut
    from qwen_job.data.clean import clean as run
    from qwen_job.data.repair import REPAIRS

    rules = (set(DROPPED_BY_DEFAULT) | _known(drop)) - _known(keep)
    file = file_of(source)
    held = HoldOut(*hold_out) if hold_out else None
    result = run(file, target, Reading([file], options).examiner(), drop=rules, hold_out=held, force=force)
    reasons = ", ".join(f"{rule} {count}" for rule, count in sorted(result.by_rule.items())) or "nothing"
    click.echo(f"kept {result.kept} (repaired {result.repaired}), dropped {result.dropped}: {reasons}", err=True)
    for name, count in sorted(result.by_repair.items()):
        click.echo(f"{count} {'row' if count == 1 else 'rows'}: {REPAIRS[name]}", err=True)
    if held:
        click.echo(f"held out {result.held_out} of the kept rows: {held.target}", err=True)
    click.echo(f"dropped rows are listed in {result.dropped_list}", err=True)
    show_path(target)


def _known(rules: tuple[str, ...]) -> set[str]:
    from qwen_job.data.rules import RULES
    from qwen_job.text import did_you_mean

    for rule in rules:
        if rule not in RULES:
            other = _OTHER_NAMES.get(rule.replace("-", "_"))
            meant = f"; did you mean {other!r}?" if other else did_you_mean(rule, RULES)
            raise UsageError(f"no such rule: {rule!r} (rules: {', '.join(RULES)}){meant}")
    return set(rules)
