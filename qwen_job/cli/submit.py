"""``qwen-job submit``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.job_options import TargetChoice, job_options, load_plan, show_words
from qwen_job.errors import JobError, UsageError

if TYPE_CHECKING:
    from qwen_job.launch.backend import Submitted
    from qwen_job.render import Bundle


@click.command()
@job_options
@click.option(
    "-t", "--target", type=TargetChoice(["local", "slurm", "kubernetes"]), required=True, help="Where the job will run."
)
@click.option("--after", metavar="JOB", help="Start when this Slurm job (name, ID or run folder) has succeeded.")
@click.option(
    "--chain",
    type=click.IntRange(min=2),
    help="Submit a chain of N dependent jobs, for clusters that forbid requeueing (slurm.chain).",
)
@click.option(
    "--then", type=click.Choice(["evaluate"]), help="Also submit an evaluation job that runs if training succeeds."
)
@click.option("--separate", is_flag=True, help="Submit one job per run of a sweep, even on Slurm.")
@click.option("--dry-run", is_flag=True, help="Check and render the job, and print it in place of submitting it.")
def submit(
    job: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    target: str,
    after: str | None,
    chain: int | None,
    then: str | None,
    separate: bool,
    dry_run: bool,
) -> None:
    """Render the job and submit it to the target.

    local runs it now and exits with its exit code; slurm prints the job's ID, kubernetes its name. A sweep is one array
    job on Slurm; elsewhere its runs are submitted one by one.
    """
    from qwen_job.api.submission import plans_of, render_each_for, submit_each

    if target != "slurm" and (after is not None or chain or then):
        raise UsageError("--after, --chain and --then apply only to Slurm: add --target slurm")
    if chain:
        sets = (*sets, f"slurm.chain={chain}")
    under: dict[str, Any] = {"evaluate": {}} if then else {}
    plan = load_plan(job, files, sets, under)
    if then and plan.job.evaluate is None:
        raise JobError(
            [plan.job.problem(("evaluate",), "is null, which conflicts with --then evaluate: remove the line")]
        )
    show_words(plan.warnings)
    plans = plans_of(plan, target, separate=separate)
    if dry_run:
        for bundle in render_each_for(plans, target, _tell):
            click.echo(bundle.text, nl=False)
        show_words(("--dry-run: nothing was submitted, and the cluster was not asked",), "cyan", "note")
        return
    codes = []
    for bundle, submitted in submit_each(plans, target, after=after, tell=_tell):
        codes.append(submitted.exit_code)
        if target != "local":
            _report(bundle, submitted)
    if target == "local":
        sys.exit(next((code for code in codes if code), 0))


def _tell(label: str, line: str) -> None:
    show_words((line,), "cyan" if label == "note" else "yellow", label)


def _report(bundle: Bundle, submitted: Submitted) -> None:
    click.echo(submitted.id)
    for (name, _), job_id in zip(bundle.then, submitted.then, strict=True):
        click.echo(f"{name}: job {job_id} waits for {submitted.id}", err=True)
    shown = f"{submitted.id}@{submitted.cluster}" if submitted.cluster else submitted.id
    click.echo(f"submitted; next: qwen-job status {shown}, or logs -f {shown}", err=True)
