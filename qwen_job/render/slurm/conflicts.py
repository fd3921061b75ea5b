"""Options of slurm.sbatch and slurm.srun that contradict the job, each other or Slurm's own grammar."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_job.errors import Problem
from qwen_job.job.slurm_options import FIELDS, value_problem
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.plan import Plan
from qwen_job.render.slurm.gpus import gpu_problems
from qwen_job.render.slurm.resources import resource_problems, whole_nodes

_PLANNED = "is planned from cluster; remove it and set cluster's fields"
_NO_JOB = "makes no job that trains; remove it"
# What the script relies on. An option's reason, said behind the field.
_OWNED = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), _PLANNED),
    **dict.fromkeys(("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket"), "one task runs on a node; remove it"),
    **dict.fromkeys(("help", "test-only", "usage", "version"), _NO_JOB),
}
_OF_SBATCH = {
    "signal": "is planned: write slurm.signal_seconds",
    "no-requeue": "is written slurm.requeue: false",
    "wrap": _NO_JOB,
}
_OF_SRUN = {
    **dict.fromkeys(("het-group", "jobid", "multi-prog", "no-allocate", "pty", "relative"), _NO_JOB),
    "nodelist": "the step runs on all nodes of the job; write slurm.sbatch.nodelist",
    "exclude": "the step runs on all nodes of the job; write slurm.sbatch.exclude",
}
# Of these Slurm takes one.
_ONE_OF = (
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("cpus-per-task", "cpus-per-gpu"),
    ("exclusive", "oversubscribe"),
    ("core-spec", "thread-spec"),
    ("nodelist", "nodefile"),
    ("export", "export-file"),
)


def option_problems(plan: Plan) -> Iterator[Problem]:
    """Yield every problem of the options that were written, at the field that was written."""
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
    """A field and the option of the same meaning, with two values."""
    slurm = plan.job.slurm
    for option, field in FIELDS.items():
        value, own = slurm.sbatch.get(option, False), getattr(slurm, field)
        if value is False or own is None or _same(option, value, own):
            continue
        message = (
            f"stands beside slurm.{field}, which says {own if option != 'time' else f'{own} s'}: write one of them"
        )
        yield plan.job.problem(("slurm", "sbatch", option), message)
    if slurm.sbatch.get("requeue", False) is not False and not slurm.requeue:
        yield plan.job.problem(("slurm", "sbatch", "requeue"), "contradicts slurm.requeue: false: write one of them")


def _same(option: str, value: str | bool | None, own: object) -> bool:
    if option == "exclusive":
        return own is True
    if option == "time":
        return isinstance(value, str) and slurm_seconds(value) in (own, None)
    return str(own) == value


def _beside(plan: Plan) -> Iterator[Problem]:
    """Options that Slurm does not take together; a field of the job counts as the option that it becomes."""
    slurm = plan.job.slurm
    fields = {
        "mem": "slurm.memory" if slurm.memory is not None else "",
        "cpus-per-task": "slurm.cpus_per_task" if slurm.cpus_per_task else "",
        "exclusive": "the whole nodes of this job (slurm.exclusive)" if whole_nodes(plan) else "",
    }
    if plan.job.cluster.cpus_per_gpu and not fields["cpus-per-task"]:
        fields["cpus-per-task"] = "cluster.cpus_per_gpu"
    for group in _ONE_OF:
        written = [name for name in group if slurm.sbatch.get(name, False) is not False]
        others = [fields[name] for name in group if fields.get(name) and name not in written]
        for name in written:
            if beside := [*others, *(f"slurm.sbatch.{other}" for other in written if other != name)]:
                message = f"cannot stand beside {' and '.join(beside)}: Slurm takes one of them"
                yield plan.job.problem(("slurm", "sbatch", name), message)


def _srun(plan: Plan) -> Iterator[Problem]:
    srun = plan.job.slurm.srun
    export = srun.get("export", False)
    if isinstance(export, str) and "ALL" not in export.upper().split(","):
        message = f"{export!r} takes PATH and all else from the training: write ALL before it, as in ALL,NAME=value"
        yield plan.job.problem(("slurm", "srun", "export"), message)
    if srun.get("cpus-per-gpu", False) is not False:
        yield plan.job.problem(("slurm", "srun", "cpus-per-gpu"), "is planned: write cluster.cpus_per_gpu")
