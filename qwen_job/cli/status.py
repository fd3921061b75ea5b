"""``qwen-job status`` and ``qwen-job watch``."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.job_options import FiniteRange, TargetChoice, show_words
from qwen_job.launch.backend import GONE, UNKNOWN
from qwen_job.text import clear_screen, duration, json_text, visible

if TYPE_CHECKING:
    from qwen_job.launch.find import Found

HEADER = ("ID", "NAME", "STATE", "STEP", "LOSS", "TOKENS/S", "LEFT", "NODES", "ATTEMPTS", "")
STALE_SECONDS = 300

target_option = click.option("-t", "--target", type=TargetChoice(["slurm", "kubernetes"]), help="Only this target.")


@click.command()
@click.argument("job", required=False)
@target_option
@click.option("--all", "old", is_flag=True, help="Also show jobs that have left the queue.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(job: str | None, target: str | None, old: bool, as_json: bool) -> None:
    """Show jobs: queue state, step, loss and time left.

    JOB is a job's name, its ID or its run folder; without it, all jobs in the queues are shown. If a queue is
    unreachable, the output comes from the run folders and the exit code is 5.
    """
    from qwen_job.launch.find import look

    looked = look(job, target, old=old)
    found = looked.found
    if as_json:
        click.echo(json_text([_as_dict(item) for item in found], indent=2))
    elif not found and not looked.unasked:
        click.echo("no jobs in the queue; use --all to show earlier ones", err=True)
    elif found:
        click.echo(table(found))
    show_words(tuple(item.progress.fault for item in found if item.progress.fault))
    looked.check()


@click.command()
@click.argument("job", required=False)
@target_option
@click.option(
    "-n", "--interval", type=FiniteRange(min=1), default=5.0, show_default=True, help="Seconds between updates."
)
def watch(job: str | None, target: str | None, interval: float) -> None:
    """Refresh the status until the jobs have ended.

    On a terminal, curves of loss and throughput are drawn below the table.
    """
    from qwen_job.api.following import follow_job
    from qwen_job.cli.curves import Curves

    curves = Curves(sys.stdout.encoding)
    for looked in follow_job(job, target, interval=interval):
        silent = [f"{name}: queue unreachable: {error}" for name, error in looked.unasked.items()]
        size = shutil.get_terminal_size()
        rows = size.lines - len(silent) - 1 if _redraws() else None
        text = fitting(looked.found, rows) if looked.found else "" if silent else "no jobs in the queue"
        if rows is not None:
            left = rows - len(text.splitlines())
            text = "\n".join((text, *curves.lines(looked.found, size.columns - 1, left)))
        _draw(text, silent)


def _redraws() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _draw(text: str, silent: list[str]) -> None:
    """Draw a frame over the previous one, or below it if the terminal cannot redraw."""
    if not _redraws():
        click.echo(f"{text}\n" if text else "", nl=bool(text))
        show_words(tuple(silent))
        return
    width = shutil.get_terminal_size().columns
    lines = [visible(line, None)[: width - 1] for line in (*text.splitlines(), *silent)]
    # Not click.clear: with NO_COLOR it drops all control sequences, not only colours.
    clear_screen()
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def fitting(found: list[Found], rows: int | None) -> str:
    """Return the jobs as columns in at most ``rows`` lines (None: no limit): running jobs first, then a count."""
    if rows is None or len(found) + 1 <= rows:
        return table(found)
    order = {"running": 0, "completing": 0, "configuring": 0, "pending": 2}
    ranks = [3 if item.entry.is_over else order.get(item.entry.state, 1) for item in found]
    room = max(rows - 2, 1)
    chosen = set(sorted(range(len(found)), key=lambda index: ranks[index])[:room])
    left = [item.entry.state for index, item in enumerate(found) if index not in chosen]
    counts = ", ".join(f"{left.count(state)} {state}" for state in dict.fromkeys(left))
    shown = [item for index, item in enumerate(found) if index in chosen]
    return f"{table(shown)}\nand {len(left)} more: {counts} ('qwen-job status' lists all)"


def table(found: list[Found]) -> str:
    """Return the jobs as columns."""
    rows = [HEADER, *(tuple(visible(cell, 200) for cell in _row(item)) for item in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(item: Found) -> tuple[str, ...]:
    entry, progress = item.entry, item.progress
    step = "" if progress.step is None else f"{progress.step}/{progress.total_steps or '?'}"
    return (
        entry.shown_id,
        entry.name if not entry.user or entry.user == _user() else f"{entry.name} ({entry.user})",
        progress.state if entry.state in (GONE, UNKNOWN) and progress.state else entry.state,
        step,
        "" if progress.loss is None else f"{progress.loss:.4f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        "" if progress.eta_seconds is None else duration(progress.eta_seconds),
        f"{entry.nodes} ({entry.pods} pods)" if entry.pods else entry.nodes,
        _attempts(entry.restarts, progress.in_place or 0),
        _remark(item),
    )


def _attempts(restarts: int, in_place: int) -> str:
    """Return how often the job was started, and how often its ranks were restarted in place; "" for once."""
    if in_place:
        return f"{restarts + 1} (+{in_place} in place)"
    return str(restarts + 1) if restarts else ""


@cache
def _user() -> str:
    from qwen_job.launch.slurm.backend import user

    return user()


def _remark(item: Found) -> str:
    if item.entry.reason:
        return item.entry.reason
    age = item.progress.age_seconds
    if item.entry.state == "running" and age is not None and age > STALE_SECONDS:
        return f"no heartbeat for {duration(age)}"
    return "; ".join(item.progress.stragglers) if item.entry.state == "running" else ""


def _as_dict(item: Found) -> dict[str, Any]:
    return {**vars(item.entry), "progress": vars(item.progress)}
