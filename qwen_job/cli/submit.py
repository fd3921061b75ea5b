"""``qwen-job submit``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from qwen_job.cli.job_options import TargetChoice, all_notes, job_options, load_plan, show_words
from qwen_job.errors import ClusterRefused, JobError, UsageError

if TYPE_CHECKING:
    from qwen_job.plan import Plan
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
    from qwen_job.launch.given import missing_variables
    from qwen_job.render import render_each

    if target != "slurm" and (after is not None or chain or then):
        raise click.UsageError("--after, --chain and --then apply only to Slurm: add --target slurm")
    if chain:
        sets = (*sets, f"slurm.chain={chain}")
    under: dict[str, Any] = {"evaluate": {}} if then else {}
    if target == "local" and sys.executable:
        # This Python has qwen_job; python3 on the PATH may be another.
        under["local"] = {"python": sys.executable.replace("${", "$${")}
    plan = load_plan(job, files, sets, under)
    if then and plan.job.evaluate is None:
        raise JobError(
            [plan.job.problem(("evaluate",), "is null, which conflicts with --then evaluate: remove the line")]
        )
    show_words((*plan.warnings, *missing_variables(plan.job, target)))
    bundles = render_each(plan, target, separate=separate)
    show_words(all_notes(bundles.values()), "cyan", "note")
    if dry_run:
        for _, bundle in bundles.values():
            click.echo(bundle.text, nl=False)
        show_words(("--dry-run: nothing was submitted, and the cluster was not asked",), "cyan", "note")
        return
    if target == "local":
        sys.exit(_run_here([bundle for _, bundle in bundles.values()]))
    _check_complete([one for one, _ in bundles.values()], target)
    options = _waiting_for(after, plan) if after is not None else ()
    if target == "slurm":
        _prepare_slurm(list(bundles.values()), waits=bool(options))
    for one, bundle in bundles.values():
        _hand_over(one, bundle, target, options)


def _prepare_slurm(bundles: Sequence[tuple[Plan, Bundle]], *, waits: bool) -> None:
    from qwen_job.launch.slurm.backend import notes

    if not waits:
        _refuse_second([plan for plan, _ in bundles])
    for line in dict.fromkeys(line for _, bundle in bundles for line in notes(bundle)):
        show_words((line,), "cyan", "note")


def _check_complete(plans: Sequence[Plan], target: str) -> None:
    """Reject a job whose run is complete, because it would wait in the queue for nothing.

    A sweep counts as complete when all its runs are. With an evaluation to follow, or on a target other than Slurm,
    where the nodes may see another folder of that name, this is only a warning.

    Raises:
        JobError: the run is complete; names ``output``.
    """
    from qwen_job.run.progress import is_done

    for plan in plans:
        if not all(is_done(run.job.output) for run in ([one.plan for one in plan.sweep] or [plan])):
            continue
        message = f"{plan.job.output} is complete (done.json), so the job would end at once: choose another output"
        if target == "slurm" and plan.job.evaluate is None:
            raise JobError([plan.job.problem(("output",), message)])
        show_words((f"output: {message}, unless you only want the evaluation" if plan.job.evaluate else message,))


def _run_here(bundles: Sequence[Bundle]) -> int:
    """Run the bundles in order and return the first nonzero exit code; stop after a retryable one (a signal)."""
    from qwen_job.errors import is_retryable
    from qwen_job.launch.backend import backend

    codes = []
    for bundle in bundles:
        codes.append(backend("local").submit(bundle).exit_code)
        if is_retryable(codes[-1]):
            break
    return next((code for code in codes if code), 0)


def _waiting_for(after: str, plan: Plan) -> Sequence[str]:
    """Return the sbatch options that make a job wait for ``after`` and for its own ``dependency``.

    Raises:
        UsageError: ``after`` did not succeed, or is on another cluster.
    """
    from qwen_job.launch.find import find_one
    from qwen_job.launch.slurm.backend import cluster_of, dependency
    from qwen_job.run.progress import is_done

    entry = find_one(after, "slurm", whole=True).entry
    there, here = entry.cluster, cluster_of({name: str(text) for name, text in plan.job.slurm.sbatch.items()})
    if there and here and there != here:
        raise UsageError(
            f"--after {after}: that job is on cluster {there}, this one is for {here}: Slurm has no dependencies "
            "across clusters"
        )
    written = plan.job.slurm.sbatch.get("dependency")
    conditions = [written] if isinstance(written, str) else []
    if not entry.forgotten:
        conditions.insert(0, f"afterok:{entry.id}")
    elif entry.state != "completed" and not is_done(entry.run):
        # Slurm treats a job that has left its queue as succeeded.
        how = ", ".join(filter(None, (entry.state, entry.reason, f"{entry.run or 'its folder'} has no done.json")))
        raise UsageError(f"--after {after}: {entry.name} ({entry.id}) has ended and did not succeed ({how})")
    return dependency(",".join(conditions)) if conditions else ()


def _refuse_second(plans: Sequence[Plan]) -> None:
    """Reject a job whose run folder is in use by a live job.

    Raises:
        ClusterRefused: names the live job's ID.
    """
    from qwen_job.launch.find import live_in

    plans = [plan for plan in plans if "dependency" not in plan.job.slurm.sbatch]
    folders = [run.job.output for plan in plans for run in (plan, *(run.plan for run in plan.sweep))]
    taken = live_in(folders) if folders else {}
    for plan in plans:
        for run in (plan, *(run.plan for run in plan.sweep)):
            if holder := taken.get(os.path.realpath(run.job.output)):
                fix = f"submit with --after {holder.shown_id}, cancel that job, or choose another output"
                message = f"job {holder.shown_id} ({holder.name}, {holder.state}) is using {run.job.output}: {fix}"
                raise ClusterRefused(str(plan.job.problem(("output",), message)))


def _hand_over(plan: Plan, bundle: Bundle, target: str, options: Sequence[str]) -> None:
    from qwen_job.launch.backend import backend
    from qwen_job.launch.index import remember

    submitted = backend(target).submit(bundle, options)
    remember(target, submitted.id, plan.job.name, plan.job.output, submitted.cluster)
    click.echo(submitted.id)
    for (name, _), job_id in zip(bundle.then, submitted.then, strict=True):
        remember(target, job_id, name.partition(".")[0], plan.job.output, submitted.cluster)
        click.echo(f"{name}: job {job_id} waits for {submitted.id}", err=True)
    shown = f"{submitted.id}@{submitted.cluster}" if submitted.cluster else submitted.id
    click.echo(f"submitted; next: qwen-job status {shown}, or logs -f {shown}", err=True)
