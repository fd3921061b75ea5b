"""``qwen-job cancel``."""

from __future__ import annotations

import click

from qwen_job.cli.status import target_option


@click.command()
@click.argument("job")
@target_option
def cancel(job: str, target: str | None) -> None:
    """End a job; it is not requeued. JOB is a job's name, its id or its run's folder."""
    from qwen_job.launch.backend import backend
    from qwen_job.launch.find import find_one

    entry = find_one(job, target, whole=True).entry
    backend(entry.target or "local").cancel(entry)
    click.echo(
        f"{entry.name} ({entry.id}) cancelled; its checkpoints stay in {entry.run or 'its run folder'}", err=True
    )
