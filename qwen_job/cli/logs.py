"""``qwen-job logs``."""

from __future__ import annotations

import sys

import click

from qwen_job.cli.status import target_option


@click.command()
@click.argument("job")
@target_option
@click.option("-f", "--follow", is_flag=True, help="Follow the output.")
def logs(job: str, target: str | None, follow: bool) -> None:
    """Print a job's output.

    JOB is a job's name, its ID or its run folder.
    """
    from qwen_job.launch.backend import backend
    from qwen_job.launch.find import find_one

    entry = find_one(job, target, asked=False).entry
    sys.exit(backend(entry.target or "local").logs(entry, follow=follow))
