"""Target slurm: one self-contained sbatch script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError
from qwen_job.job.document import dotted
from qwen_job.job.types import slurm_seconds
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.container import batch_settings, srun_options
from qwen_job.render.context import node_check, shell_context
from qwen_job.render.engine import render_template
from qwen_job.render.quote import Unrepresentable, sbatch
from qwen_job.render.slurm.conflicts import option_problems
from qwen_job.render.slurm.gpus import gpu_request
from qwen_job.render.slurm.resources import (
    planned_cpus,
    planned_memory,
    resource_notes,
    whole_nodes,
    written_cpus,
)

# The signal may come up to a minute early or late, and a step must end before the save begins.
SIGNAL_MARGIN_SECONDS = 120
_MOST_SIGNAL_SECONDS = 65535
# How a job in the queue tells its run's folder.
COMMENT = "qwen-job:"


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return NAME.sbatch. Errors: :class:`JobError` for options that contradict the job."""
    job, slurm = plan.job, plan.job.slurm
    context = _context(plan, folders)
    options = _checked(plan, sbatch_options(plan))
    context |= {
        "options": options,
        "srun_options": _srun_options(plan),
        "container": batch_settings(plan),
        "slurm_gives_gpus": slurm_gives_gpus(plan),
        "requeue": slurm.requeue and not slurm.chain,
        "chain": slurm.chain or 0,
        "tasks": [],
        "limit_seconds": _limit_seconds(plan),
        "signal_seconds": _signal_seconds(plan),
        "max_retries": job.retry.max_retries,
        "max_without_progress": job.retry.max_without_progress,
    }
    if plan.sweep:
        context |= _sweep(plan, folders)
    name = f"{job.name}.sbatch"
    script = render_template("slurm/job.sbatch.j2", context, folders)
    bundle = Bundle(
        "slurm",
        {name: script},
        name,
        fields={option: dotted(_field(plan, option)) for option, _ in options},
        notes=tuple(resource_notes(plan)),
    )
    return bundle if job.evaluate is None else _with_evaluate(plan, folders, bundle)


def _with_evaluate(plan: Plan, folders: Sequence[str | Path], bundle: Bundle) -> Bundle:
    """Return the bundle with the job that measures the trained model beside it."""
    from qwen_job.render.slurm.evaluate import SUFFIX, dependency_of, evaluate_script

    after = f"{plan.job.name}{SUFFIX}.sbatch"
    text = evaluate_script(plan, folders, _checked, sbatch_options, _srun_options)
    way = "'qwen-job submit' sends both, -o DIR writes both"
    note = f"evaluate: {after} is a job of its own, which waits for this one; {way}"
    files = {**bundle.files, after: text}
    return replace(bundle, files=files, notes=(*bundle.notes, note), then=((after, dependency_of(plan)),))


def _sweep(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    """Return what the template needs of a sweep. Errors: :class:`JobError` for runs that one array cannot hold."""
    from qwen_job.render.slurm.array import check_common, check_size, sweep_index, task

    check_common(plan, sbatch_options)
    tasks = [task(run.plan, _context(run.plan, folders), _srun_options(run.plan)) for run in plan.sweep]
    check_size(plan, tasks)
    return {"tasks": tasks, "sweep_index": sweep_index(plan)}


def _array(plan: Plan) -> dict[str, str]:
    """Return the options that make the job an array, none for a plain job."""
    if not (plan.job.sweep or plan.job.slurm.chain or "array" in plan.job.slurm.sbatch):
        return {}
    from qwen_job.render.slurm.array import array_options

    return array_options(plan)


def _context(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    """Return what the templates need of one run."""
    slurm = plan.job.slurm
    return shell_context(
        plan,
        folders,
        python=slurm.python,
        runtime=plan.job.container.runtime,
        modules=slurm.modules,
        setup=slurm.setup,
        preflight=node_check(plan, slurm.min_allreduce_gbs) if slurm.preflight else (),
        scratch=slurm.scratch,
    )


def _checked(plan: Plan, options: dict[str, str | None]) -> list[tuple[str, str | None]]:
    """Return the options as pairs; every value that an #SBATCH line cannot hold is reported by its field."""
    problems = []
    for name, value in options.items():
        try:
            sbatch(name)
            sbatch(value or "")
        except Unrepresentable as error:
            problems.append(plan.job.problem(_field(plan, name), f"{error}"))
    if problems:
        raise JobError(problems)
    return list(options.items())


def _field(plan: Plan, option: str) -> tuple[str, ...]:
    """Return the field of job.yaml that ``option`` comes from."""
    if option in plan.job.slurm.sbatch:
        return ("slurm", "sbatch", option)
    fields = {
        "job-name": ("name",),
        "nodes": ("cluster", "nodes"),
        "output": ("slurm", "log_dir"),
        "mem": ("slurm", "memory"),
        "signal": ("slurm", "signal_seconds"),
        "gres": ("slurm", "gpu_type"),
        "gpus-per-node": ("slurm", "gpu_type"),
    }
    return fields.get(option, ("slurm", option.replace("-", "_")))


def sbatch_options(plan: Plan) -> dict[str, str | None]:
    """Return long option -> value (None: a flag) for the #SBATCH lines; the user's own override the planned.

    Errors: :class:`JobError` for options that contradict the job or each other.
    """
    if problems := list(option_problems(plan)):
        raise JobError(problems)
    slurm, array = plan.job.slurm, _array(plan)
    cpus, memory = planned_cpus(plan), planned_memory(plan)
    log_dir = f"{slurm.log_dir.rstrip('/').replace('%', '%%')}/" if slurm.log_dir else ""
    signal = _signal_seconds(plan)
    _check_signal(plan, signal)
    planned: dict[str, str | None] = {
        "job-name": plan.job.name,
        "nodes": str(plan.nodes),
        "ntasks-per-node": "1",
        **gpu_request(plan),
        **({"cpus-per-task": str(cpus)} if cpus else {}),
        **({"mem": memory} if memory is not None else {}),
        **({"exclusive": None} if whole_nodes(plan) else {}),
        **({"time": slurm_time(slurm.time)} if slurm.time else {}),
        **array,
        "output": f"{log_dir}{array.get('output', '%x-%j.out')}",
        "open-mode": "append",
        "requeue" if slurm.requeue and not slurm.chain else "no-requeue": None,
        **({"signal": f"B:USR1@{signal}"} if signal else {}),
    }
    comment = COMMENT + plan.job.output
    if len(comment.encode()) <= 1000 and _representable(comment):
        planned["comment"] = comment
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(slurm, name)
        if value is not None:
            planned[name] = value
    merged = laid_over(planned, slurm.sbatch)
    # What the user asks for beside the GPUs is in the planned gres already.
    return {**merged, **({"gres": planned["gres"]} if "gres" in planned and "gres" in merged else {})}


def _signal_seconds(plan: Plan) -> int:
    """Return how long before the time limit Slurm's signal comes, 0 for no signal.

    A job that asks for no time has a limit, too: its partition's.
    """
    limit, written = _limit_seconds(plan), plan.job.slurm.signal_seconds
    if written is not None:
        return written
    signal = plan.job.retry.grace + SIGNAL_MARGIN_SECONDS
    return signal if limit is None else min(signal, limit // 2)


def _check_signal(plan: Plan, signal: int) -> None:
    """Refuse a signal that would come before the job begins, or that Slurm cannot count. Errors: :class:`JobError`."""
    most = min(_limit_seconds(plan) or _MOST_SIGNAL_SECONDS + 1, _MOST_SIGNAL_SECONDS + 1)
    if signal >= most:
        message = f"{signal} s before the end is no time in which the job runs: write less than {most}, or leave it out"
        raise JobError([plan.job.problem(("slurm", "signal_seconds"), message)])


def _limit_seconds(plan: Plan) -> int | None:
    """Return the time limit that the job asks for, None where it leaves it to the partition."""
    written = plan.job.slurm.sbatch.get("time")
    return slurm_seconds(written) if isinstance(written, str) else plan.job.slurm.time


def laid_over(planned: dict[str, str | None], written: Mapping[str, str | bool | None]) -> dict[str, str | None]:
    """Lay the user's options over ours: true and null are flags, false takes an option away."""
    merged: dict[str, str | bool | None] = {**planned, **written}
    return {name: value if isinstance(value, str) else None for name, value in merged.items() if value is not False}


def _representable(value: str) -> bool:
    try:
        sbatch(value)
    except Unrepresentable:
        return False
    return True


def slurm_gives_gpus(plan: Plan) -> bool:
    """Tell whether Slurm itself says which GPUs a step has, so that CUDA_VISIBLE_DEVICES is no news."""
    return not plan.gpu.is_cpu and plan.job.slurm.gpu_request != "none"


def slurm_time(seconds: int) -> str:
    """Write seconds as Slurm's days-hours:minutes:seconds."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02}:{minute:02}:{second:02}" if day else f"{hour:02}:{minute:02}:{second:02}"


def _srun_options(plan: Plan) -> list[str]:
    slurm = plan.job.slurm
    planned: dict[str, str | None] = {
        "nodes": str(plan.nodes),
        "ntasks-per-node": "1",
        "kill-on-bad-exit": "1",
        "wait": "60",
        "cpu-bind": "none",
    }
    cpus = sbatch_options(plan).get("cpus-per-task") or (None if whole_nodes(plan) else written_cpus(plan))
    if cpus:
        # Since 22.05 srun does not inherit it from the job.
        planned["cpus-per-task"] = str(cpus)
    merged = laid_over(planned, slurm.srun)
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in merged.items()]
    return [*words, *srun_options(plan)]
