"""Options of slurm.sbatch and slurm.srun that contradict the job, each other or Slurm's own rules."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_job.errors import Problem
from qwen_job.job.slurm_options import FIELDS, value_problem
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.plan import Plan
from qwen_job.render.slurm.cpus_and_memory import resource_problems, whole_nodes
from qwen_job.render.slurm.gpu_request import gpu_problems

_PLANNED = "is planned from cluster; remove it and set the fields of cluster"
_NO_JOB = "would not start a training job; remove it"
# Options that the script relies on -> why they cannot be set, to follow the field's name.
_OWNED = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), _PLANNED),
    **dict.fromkeys(
        ("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket"), "conflicts with one task per node; remove it"
    ),
    **dict.fromkeys(("help", "test-only", "usage", "version"), _NO_JOB),
}
_OF_SBATCH = {
    "signal": "is planned: use slurm.signal_seconds",
    "no-requeue": "is planned: use slurm.requeue: false",
    "wrap": _NO_JOB,
}
_OF_SRUN = {
    **dict.fromkeys(("het-group", "jobid", "multi-prog", "no-allocate", "pty", "relative"), _NO_JOB),
    "nodelist": "the step runs on all nodes of the job; use slurm.sbatch.nodelist",
    "exclude": "the step runs on all nodes of the job; use slurm.sbatch.exclude",
}
# Slurm accepts one option of each group.
_ONE_OF = (
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("cpus-per-task", "cpus-per-gpu"),
    ("exclusive", "oversubscribe"),
    ("core-spec", "thread-spec"),
    ("nodelist", "nodefile"),
    ("export", "export-file"),
)


def option_problems(plan: Plan) -> Iterator[Problem]:
    """Yield every problem with the user's options, at the field that the user wrote."""
    for section, owned in (("sbatch", _OWNED | _OF_SBATCH), ("srun", _OWNED | _OF_SRUN)):
        for name, value in getattr(plan.job.slurm, section).items():
            message = owned.get(name, "") if value is not False or owned.get(name) == _PLANNED else ""
            if message := message or value_problem(name, value):
                yield plan.job.problem(("slurm", section, name), message)
        yield from gpu_problems(plan, section)
    yield from _twice(plan)
    yield from _beside(plan)
    yield from _srun(plan)
    yield from resource_problems(plan)


def _twice(plan: Plan) -> Iterator[Problem]:
    """Yield fields and options of the same meaning that have two values."""
    slurm = plan.job.slurm
    for option, field in FIELDS.items():
        value, own = slurm.sbatch.get(option, False), getattr(slurm, field)
        if value is False or own is None or _same(option, value, own):
            continue
        message = f"contradicts slurm.{field}, which is {own if option != 'time' else f'{own} s'}: remove one of them"
        yield plan.job.problem(("slurm", "sbatch", option), message)
    if slurm.sbatch.get("requeue", False) is not False and not slurm.requeue:
        yield plan.job.problem(("slurm", "sbatch", "requeue"), "contradicts slurm.requeue: false: remove one of them")


def _same(option: str, value: str | bool | None, own: object) -> bool:
    if option == "exclusive":
        return own is True
    if option == "time":
        return isinstance(value, str) and slurm_seconds(value) in (own, None)
    return str(own) == value


def _beside(plan: Plan) -> Iterator[Problem]:
    """Yield options that Slurm does not accept together; a field counts as the option that it becomes."""
    slurm = plan.job.slurm
    fields = {
        "mem": "slurm.memory" if slurm.memory is not None else "",
        "cpus-per-task": "slurm.cpus_per_task" if slurm.cpus_per_task else "",
        "exclusive": "whole nodes (slurm.exclusive)" if whole_nodes(plan) else "",
    }
    if plan.job.cluster.cpus_per_gpu and not fields["cpus-per-task"]:
        fields["cpus-per-task"] = "cluster.cpus_per_gpu"
    for group in _ONE_OF:
        written = [name for name in group if slurm.sbatch.get(name, False) is not False]
        others = [fields[name] for name in group if fields.get(name) and name not in written]
        for name in written:
            if beside := [*others, *(f"slurm.sbatch.{other}" for other in written if other != name)]:
                message = f"cannot be combined with {' and '.join(beside)}: remove one of them"
                yield plan.job.problem(("slurm", "sbatch", name), message)


def _srun(plan: Plan) -> Iterator[Problem]:
    srun = plan.job.slurm.srun
    export = srun.get("export", False)
    if isinstance(export, str) and "ALL" not in export.upper().split(","):
        message = f"{export!r} removes PATH and everything else from the training: put ALL first, as in ALL,NAME=value"
        yield plan.job.problem(("slurm", "srun", "export"), message)
    if srun.get("cpus-per-gpu", False) is not False:
        yield plan.job.problem(("slurm", "srun", "cpus-per-gpu"), "is planned: use cluster.cpus_per_gpu")
