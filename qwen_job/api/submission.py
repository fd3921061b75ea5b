"""Submit planned jobs: every check that can be made before a job waits in a queue, then the submission."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence

from qwen_job.api.jobs import render_job, with_this_python
from qwen_job.errors import ClusterRefused, JobError, UsageError, is_retryable
from qwen_job.launch.backend import TARGETS, Submitted, backend
from qwen_job.launch.find import find_one, live_in
from qwen_job.launch.given import missing_variables
from qwen_job.launch.index import remember
from qwen_job.launch.slurm.backend import cluster_of, dependency
from qwen_job.launch.slurm.backend import notes as notes_of_slurm
from qwen_job.plan import Plan
from qwen_job.render import Bundle
from qwen_job.run.progress import is_done
from qwen_job.text import did_you_mean

# Hears a warning or a note: its label, and the line.
Tell = Callable[[str, str], None]


def _log(label: str, line: str) -> None:
    """Log a line, with the logger ``qwen_job``: warnings are shown unless a program configures logging."""
    logging.getLogger("qwen_job").log(logging.WARNING if label == "warning" else logging.INFO, "%s", line)


def submit_job(plan: Plan, target: str, *, after: str | None = None, tell: Tell = _log) -> Submitted:
    """Render a planned job and submit it: to slurm, kubernetes or local.

    ``id`` of what is returned is the job's, for :func:`qwen_job.follow_job`. ``local`` runs the job here to its end,
    and ``exit_code`` then holds its result. ``after`` names a Slurm job that must succeed first. A sweep is one array
    job on Slurm; elsewhere submit the plan of each of ``plan.sweep``. Warnings and notes go to ``tell``, by default to
    the logger ``qwen_job``.

    Raises:
        JobError: the target cannot represent a value, or the run is complete; names its field.
        ClusterRefused: the cluster refused the job, or another job uses its folder.
        EnvironmentFault: the cluster is unreachable.
        UsageError: the target is unknown, or ``after`` does not fit.
    """
    if plan.sweep and target != "slurm":
        message = f"on {target} each of its {len(plan.sweep)} runs is a separate job: submit the plan of each"
        raise JobError([plan.job.problem(("sweep",), message)])
    ((_, submitted),) = submit_each([plan], target, after=after, tell=tell)
    return submitted


def plans_of(plan: Plan, target: str, *, separate: bool = False) -> list[Plan]:
    """Return the plans that become one job each: those of a sweep, or on Slurm the array, unless ``separate``."""
    return [run.plan for run in plan.sweep] if plan.sweep and (separate or target != "slurm") else [plan]


def submit_each(
    plans: Sequence[Plan], target: str, *, after: str | None = None, tell: Tell = _log
) -> Iterator[tuple[Bundle, Submitted]]:
    """Submit several jobs, and yield each when it is submitted; all are rendered and checked before the first.

    Local jobs run one after the other, up to one that was interrupted.

    Raises:
        JobError, ClusterRefused, EnvironmentFault, UsageError: as :func:`submit_job`.
    """
    if after is not None and target != "slurm":
        raise UsageError("only a Slurm job can wait for another one: leave out 'after', or submit to slurm")
    bundles = render_each_for(plans, target, tell)
    if target == "local":
        yield from _run_here(bundles)
        return
    _check_complete(plans, target, tell)
    options = _waiting_for(after, plans[0]) if after is not None else ()
    if target == "slurm":
        _prepare_slurm(plans, bundles, tell, waits=bool(options))
    for plan, bundle in zip(plans, bundles, strict=True):
        yield bundle, _hand_over(plan, bundle, target, options)


def render_each_for(plans: Sequence[Plan], target: str, tell: Tell) -> list[Bundle]:
    """Render the jobs as they are submitted, and tell every note once.

    Raises:
        JobError, UsageError: as :func:`submit_job`.
    """
    if target not in TARGETS:
        raise UsageError(f"submit takes {', '.join(TARGETS)}, not {target!r}{did_you_mean(target, TARGETS)}")
    for line in dict.fromkeys(line for plan in plans for line in missing_variables(plan.job, target)):
        tell("warning", line)
    placed = map(with_this_python, plans) if target == "local" else plans
    bundles = [render_job(plan, target) for plan in placed]
    for line in dict.fromkeys(note for bundle in bundles for note in bundle.notes):
        tell("note", line)
    return bundles


def _run_here(bundles: Sequence[Bundle]) -> Iterator[tuple[Bundle, Submitted]]:
    """Run the jobs in order; stop after a retryable exit code (a signal)."""
    for bundle in bundles:
        submitted = backend("local").submit(bundle)
        yield bundle, submitted
        if is_retryable(submitted.exit_code):
            return


def _check_complete(plans: Sequence[Plan], target: str, tell: Tell) -> None:
    """Reject a job whose run is complete, because it would wait in the queue for nothing.

    A sweep counts as complete when all its runs are. With an evaluation to follow, or on a target other than Slurm,
    where the nodes may see another folder of that name, this is only a warning.

    Raises:
        JobError: the run is complete; names ``output``.
    """
    for plan in plans:
        if not all(is_done(run.job.output) for run in ([one.plan for one in plan.sweep] or [plan])):
            continue
        message = f"{plan.job.output} is complete (done.json), so the job would end at once: choose another output"
        if target == "slurm" and plan.job.evaluate is None:
            raise JobError([plan.job.problem(("output",), message)])
        unless = ", unless you only want the evaluation" if plan.job.evaluate and target == "slurm" else ""
        tell("warning", f"output: {message}{unless}")


def _waiting_for(after: str, plan: Plan) -> Sequence[str]:
    """Return the sbatch options that make a job wait for ``after`` and for its own ``dependency``.

    Raises:
        UsageError: ``after`` did not succeed, or is on another cluster.
    """
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


def _prepare_slurm(plans: Sequence[Plan], bundles: Sequence[Bundle], tell: Tell, *, waits: bool) -> None:
    if not waits:
        _refuse_second(plans)
    for line in dict.fromkeys(line for bundle in bundles for line in notes_of_slurm(bundle)):
        tell("note", line)


def _refuse_second(plans: Sequence[Plan]) -> None:
    """Reject a job whose run folder is in use by a live job.

    Raises:
        ClusterRefused: names the live job's ID.
    """
    plans = [plan for plan in plans if "dependency" not in plan.job.slurm.sbatch]
    runs = [(plan, run) for plan in plans for run in (plan, *(run.plan for run in plan.sweep))]
    taken = live_in([run.job.output for _, run in runs]) if runs else {}
    for plan, run in runs:
        if holder := taken.get(os.path.realpath(run.job.output)):
            fix = f"submit with --after {holder.shown_id}, cancel that job, or choose another output"
            message = f"job {holder.shown_id} ({holder.name}, {holder.state}) is using {run.job.output}: {fix}"
            raise ClusterRefused(str(plan.job.problem(("output",), message)))


def _hand_over(plan: Plan, bundle: Bundle, target: str, options: Sequence[str]) -> Submitted:
    submitted = backend(target).submit(bundle, options)
    remember(target, submitted.id, plan.job.name, plan.job.output, submitted.cluster)
    for (name, _), job_id in zip(bundle.then, submitted.then, strict=True):
        remember(target, job_id, name.partition(".")[0], plan.job.output, submitted.cluster)
    return submitted
