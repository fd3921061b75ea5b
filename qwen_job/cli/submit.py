"""``qwen-job submit``."""

from __future__ import annotations

import sys

import click

from qwen_job.cli.options import job_options, load_plan, show_words


@click.command()
@job_options
@click.option(
    "-t", "--target", type=click.Choice(["local", "slurm", "kubernetes"]), required=True, help="Where the job will run."
)
def submit(job: str | None, files: tuple[str, ...], sets: tuple[str, ...], target: str) -> None:
    """Render the job and hand it to the target.

    local runs it here and now, and ends with its exit code; slurm prints the job's id; kubernetes its name.
    """
    from qwen_job.launch.backend import backend
    from qwen_job.launch.index import remember
    from qwen_job.render import render

    plan = load_plan(job, files, sets)
    show_words(plan.warnings)
    bundle = render(plan, target)
    show_words(bundle.notes, "cyan", "note")
    submitted = backend(target).submit(bundle)
    if target == "local":
        sys.exit(submitted.exit_code)
    remember(target, submitted.id, plan.job.name, plan.job.output)
    click.echo(submitted.id)
    click.echo(f"submitted; next: qwen-job status {submitted.id}, or logs -f {submitted.id}", err=True)
