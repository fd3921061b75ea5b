"""``qwen-job status`` and ``qwen-job watch``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.options import show_words
from qwen_job.launch.backend import GONE, UNKNOWN
from qwen_job.text import clear_screen, json_text, visible

if TYPE_CHECKING:
    from qwen_job.launch.find import Found

HEADER = ("ID", "NAME", "STATE", "STEP", "LOSS", "TOKENS/S", "LEFT", "NODES", "TRIES", "")
STALE_SECONDS = 300
_GOES_ON = ("pending", "running", "configuring", "completing", UNKNOWN)

target_option = click.option("-t", "--target", type=click.Choice(["slurm", "kubernetes"]), help="Only this target.")


@click.command()
@click.argument("job", required=False)
@target_option
@click.option("--all", "old", is_flag=True, help="Also jobs that their queue has forgotten.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status(job: str | None, target: str | None, old: bool, as_json: bool) -> None:
    """Show jobs: the queue's state beside step, loss and time left.

    JOB is a job's name, its id or its run's folder; without it all that the queues know are shown. Where a queue cannot
    be asked, what the runs' folders tell is shown, and the exit code is 5.
    """
    from qwen_job.launch.find import look

    looked = look(job, target, old=old)
    found = looked.found
    if as_json:
        click.echo(json_text([_as_dict(item) for item in found], indent=2))
    elif not found and not looked.unasked:
        click.echo("no jobs in the queue; --all shows earlier ones", err=True)
    elif found:
        click.echo(table(found))
    show_words(tuple(item.progress.fault for item in found if item.progress.fault))
    looked.check()


@click.command()
@click.argument("job", required=False)
@target_option
@click.option("-n", "--interval", type=click.FloatRange(min=1), default=5.0, show_default=True, help="Seconds.")
def watch(job: str | None, target: str | None, interval: float) -> None:
    """Show the status again and again, until the jobs are over."""
    from qwen_job.launch.find import look

    while True:
        looked = look(job, target)
        clear_screen()
        if looked.found or not looked.unasked:
            click.echo(table(looked.found) if looked.found else "no jobs in the queue")
        if not any(item.entry.state in _GOES_ON for item in looked.found):
            looked.check()
            return
        for name, error in looked.unasked.items():
            show_words((f"{name}: its queue could not be asked: {error}",))
        time.sleep(interval)


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
        entry.id,
        entry.name,
        progress.state if entry.state in (GONE, UNKNOWN) and progress.state else entry.state,
        step,
        "" if progress.loss is None else f"{progress.loss:.4f}",
        "" if progress.tokens_per_second is None else f"{progress.tokens_per_second:,.0f}",
        "" if progress.eta_seconds is None else duration(progress.eta_seconds),
        f"{entry.nodes} ({entry.pods} pods)" if entry.pods else entry.nodes,
        str(entry.restarts + 1) if entry.restarts else "",
        _remark(item),
    )


def _remark(item: Found) -> str:
    if item.entry.reason:
        return item.entry.reason
    age = item.progress.age_seconds
    if item.entry.state == "running" and age is not None and age > STALE_SECONDS:
        return f"no heartbeat for {duration(age)}"
    return ""


def duration(seconds: float) -> str:
    """Write seconds as 45s, 12m30s, 3h05m or 2d4h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def _as_dict(item: Found) -> dict[str, Any]:
    return {**vars(item.entry), "progress": vars(item.progress)}
