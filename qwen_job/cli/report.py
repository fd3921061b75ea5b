"""``qwen-job report``."""

from __future__ import annotations

from pathlib import Path

import click

from qwen_job.text import show_path


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write a run's report.html.

    The page shows curves, planned vs. measured memory and time, and where the wall time went; it opens offline. The
    path goes to standard output and the main figures to standard error. Also works for a running or killed run.
    """
    from qwen_job.report.page import main_figures, write_report

    path = write_report(run)
    for line in main_figures(run):
        click.echo(line, err=True)
    show_path(path)
