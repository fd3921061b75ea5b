"""What a Slurm array holds: the runs of a sweep in parallel, or the links of a chain one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_job.errors import JobError
from qwen_job.plan import Plan
from qwen_job.render.slurm.cpus_and_memory import written_cpus
from qwen_job.render.slurm.sbatch_options import sbatch_options, srun_options

# Slurm's own limit on a script (SchedulerParameters=max_script_size), less the rest of the script.
MAX_SCRIPT_BYTES = 4 * 2**20 - 64 * 1024
# Options that may differ between runs, because the array has one name, one comment and one pattern for its logs.
_OF_EACH = ("job-name", "comment", "output")
# Fields that the script itself holds once for all runs.
_COMMON = (("slurm", "requeue"), ("retry", "max_retries"), ("retry", "max_without_progress"))


def check_common(plan: Plan) -> None:
    """Reject a sweep whose runs need different allocations, because an array requests one.

    Raises:
        JobError: names the swept fields that differ.
    """
    shared = [_shared(run.plan) for run in plan.sweep]
    blamed: dict[str, set[str]] = {}
    for run, own in zip(plan.sweep, shared, strict=True):
        differing = {name for name in {*own, *shared[0]} if own.get(name, "-") != shared[0].get(name, "-")}
        if differing:
            changed = [field for field, value in run.values.items() if value != plan.sweep[0].values[field]]
            # Runs that differ in one field only tell which one it is; they come first in the grid.
            if len(changed) == 1 or not differing <= set().union(*blamed.values()):
                blamed.setdefault(changed[0], set()).update(differing)
    fix = "use 'render --separate -o DIR' or 'submit --separate' to make one job per run"
    problems = [
        plan.job.problem(("sweep", field), f"changes {', '.join(sorted(names))}, which one array cannot do: {fix}")
        for field, names in blamed.items()
    ]
    if problems:
        raise JobError(problems)


def _shared(plan: Plan) -> dict[str, Any]:
    """Return what all tasks have in common: the options of sbatch, and what the script itself holds once."""
    # Defaults are the same for all runs: those of the run that needs most.
    own = (*_OF_EACH, *(["mem"] if plan.job.slurm.memory is None and "mem" not in plan.job.slurm.sbatch else []))
    own = (*own, *(["cpus-per-task"] if written_cpus(plan) is None else []))
    shared: dict[str, Any] = {f"--{name}": value for name, value in sbatch_options(plan).items() if name not in own}
    return shared | {f"{section}.{field}": getattr(getattr(plan.job, section), field) for section, field in _COMMON}


def task(plan: Plan, context: dict[str, Any]) -> dict[str, Any]:
    """Return what belongs to one task of the array: folder, files, node script and the options of srun."""
    own = {name: context[name] for name in ("files", "node_script")}
    return {**own, "run": plan.job.output, "srun_options": srun_options(plan)}


def check_size(plan: Plan, tasks: Sequence[dict[str, Any]]) -> None:
    """Reject runs whose files make the script longer than Slurm accepts.

    Raises:
        JobError: names ``sweep``.
    """
    texts = [text for one in tasks for text in (*one["files"].values(), one["node_script"])]
    size = sum(len(text.encode()) for text in texts)
    if size > MAX_SCRIPT_BYTES:
        message = (
            f"{len(tasks)} runs make a script of {size / 2**20:.1f} MiB; Slurm accepts 4 MiB: sweep fewer values at a "
            "time"
        )
        raise JobError([plan.job.problem(("sweep",), message)])
