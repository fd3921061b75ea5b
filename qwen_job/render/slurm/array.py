"""What a Slurm array holds: the runs of a sweep side by side, or the links of a chain one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qwen_job.errors import JobError
from qwen_job.plan import Plan
from qwen_job.render.quote import to_json
from qwen_job.render.slurm.resources import written_cpus

# Slurm's own limit on a script (SchedulerParameters=max_script_size), less the rest of the script.
MAX_SCRIPT_BYTES = 4 * 2**20 - 64 * 1024
# Options that every run may have of its own, since the array has one name, one comment and one kind of log.
_OF_EACH = ("job-name", "comment", "output")
# What the script itself holds once for all runs.
_COMMON = (("slurm", "requeue"), ("retry", "max_retries"), ("retry", "max_without_progress"))

Options = dict[str, str | None]


def array_options(plan: Plan) -> dict[str, str]:
    """Return the options that make the job an array; none for a plain job. Errors: :class:`JobError`."""
    slurm = plan.job.slurm
    if "array" in slurm.sbatch:
        message = "would start several jobs in one run's folder: write sweep for runs side by side, or slurm.chain"
        raise JobError([plan.job.problem(("slurm", "sbatch", "array"), message)])
    if slurm.chain and plan.job.sweep:
        message = "cannot be combined with sweep, since both are arrays; submit one job for each value"
        raise JobError([plan.job.problem(("slurm", "chain"), message)])
    if slurm.chain and slurm.requeue and plan.job.wrote("slurm", "requeue"):
        message = "takes the place of requeueing: remove slurm.requeue: true, or the chain"
        raise JobError([plan.job.problem(("slurm", "chain"), message)])
    if slurm.chain:
        return {"array": f"0-{slurm.chain - 1}%1", "output": "%x-%A.out"}
    if plan.sweep:
        limit = f"%{slurm.array_limit}" if slurm.array_limit else ""
        return {"array": f"0-{len(plan.sweep) - 1}{limit}", "output": "%x-%A_%a.out"}
    return {}


def check_common(plan: Plan, options: Callable[[Plan], Options]) -> None:
    """Refuse a sweep whose runs need different allocations: an array asks for one. Errors: :class:`JobError`."""
    shared = [_shared(run.plan, options(run.plan)) for run in plan.sweep]
    blamed: dict[str, set[str]] = {}
    for run, own in zip(plan.sweep, shared, strict=True):
        differing = {name for name in {*own, *shared[0]} if own.get(name, "-") != shared[0].get(name, "-")}
        if differing:
            changed = [field for field, value in run.values.items() if value != plan.sweep[0].values[field]]
            # Runs that differ in one field only tell which one it is; they come first in the grid.
            if len(changed) == 1 or not differing <= set().union(*blamed.values()):
                blamed.setdefault(changed[0], set()).update(differing)
    way_out = "'render --separate -o DIR' and 'submit --separate' make a job of each run"
    problems = [
        plan.job.problem(("sweep", field), f"changes {', '.join(sorted(names))}, which one array cannot: {way_out}")
        for field, names in blamed.items()
    ]
    if problems:
        raise JobError(problems)


def _shared(plan: Plan, options: Options) -> dict[str, Any]:
    """Return what all tasks have in common: sbatch's options, and what the script itself holds once."""
    # What nobody wrote is the same for all: as much as the run that needs most.
    own = (*_OF_EACH, *(["mem"] if plan.job.slurm.memory is None and "mem" not in plan.job.slurm.sbatch else []))
    own = (*own, *(["cpus-per-task"] if written_cpus(plan) is None else []))
    shared: dict[str, Any] = {f"--{name}": value for name, value in options.items() if name not in own}
    return shared | {f"{section}.{field}": getattr(getattr(plan.job, section), field) for section, field in _COMMON}


def sweep_index(plan: Plan) -> str:
    """Return sweep.json: the runs in the order of the array's tasks."""
    runs = [{"folder": run.folder, "values": run.values} for run in plan.sweep]
    return to_json({"version": 1, "name": plan.job.name, "runs": runs}) + "\n"


def task(plan: Plan, context: dict[str, Any], srun_options: list[str]) -> dict[str, Any]:
    """Return what one task of the array has of its own: folder, files, node script and srun's options."""
    own = {name: context[name] for name in ("files", "node_script")}
    return {**own, "run": plan.job.output, "srun_options": srun_options}


def check_size(plan: Plan, tasks: Sequence[dict[str, Any]]) -> None:
    """Refuse runs whose files make the script longer than Slurm takes. Errors: :class:`JobError`."""
    texts = [text for one in tasks for text in (*one["files"].values(), one["node_script"])]
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SCRIPT_BYTES:
        message = (
            f"{len(tasks)} runs make a script of {size / 2**20:.1f} MiB, and Slurm takes 4: sweep fewer values at once"
        )
        raise JobError([plan.job.problem(("sweep",), message)])
