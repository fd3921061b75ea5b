"""``qwen-job cancel``."""

from __future__ import annotations

import click

from qwen_job.cli.status import target_option


@click.command()
@click.argument("job")
@target_option
def cancel(job: str, target: str | None) -> None:
    """Cancel a job without requeueing it.

    JOB is a job's name, its ID or its run folder.
    """
    from qwen_job.launch.backend import backend
    from qwen_job.launch.find import find_live, find_one

    found = find_live(job, target) or [find_one(job, target, whole=True)]
    for entry in (one.entry for one in found):
        if entry.target == "slurm" and entry.is_over:
            how = ", ".join(filter(None, (entry.state, entry.reason)))
            click.echo(f"{entry.name} ({entry.shown_id}) has already ended ({how}): nothing to cancel", err=True)
            continue
        backend(entry.target or "local").cancel(entry)
        where = entry.run or "the run folder"
        click.echo(f"{entry.name} ({entry.shown_id}) cancelled; the checkpoints are kept in {where}", err=True)
