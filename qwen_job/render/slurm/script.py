"""Target slurm: one self-contained sbatch script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.job.document import dotted
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle, Request
from qwen_job.render.configs import sweep_index
from qwen_job.render.container import batch_settings
from qwen_job.render.context import node_check
from qwen_job.render.engine import render_template
from qwen_job.render.evaluation import check_words
from qwen_job.render.slurm.array import check_common, check_size, task
from qwen_job.render.slurm.cpus_and_memory import resource_notes
from qwen_job.render.slurm.evaluate import dependency_of, evaluate_script
from qwen_job.render.slurm.sbatch_options import (
    EVALUATE_SUFFIX,
    checked,
    field_of,
    limit_seconds,
    sbatch_options,
    signal_seconds,
    slurm_gives_gpus,
    srun_options,
)
from qwen_job.render.slurm.script_context import slurm_context


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return NAME.sbatch.

    Raises:
        JobError: for options that contradict the job.
    """
    job, slurm = plan.job, plan.job.slurm
    context = _context(plan, folders)
    options = checked(plan, sbatch_options(plan))
    context |= {
        "options": options,
        "srun_options": srun_options(plan),
        "container": batch_settings(plan),
        "slurm_gives_gpus": slurm_gives_gpus(plan),
        "requeue": slurm.requeue and not slurm.chain,
        "chain": slurm.chain or 0,
        "spare_nodes": slurm.spare_nodes,
        "tasks": [],
        "limit_seconds": limit_seconds(plan),
        "signal_seconds": signal_seconds(plan),
        "notify": bool(job.notify),
        "max_retries": job.retry.max_retries,
        "max_without_progress": job.retry.max_without_progress,
    }
    if plan.sweep:
        context |= _sweep(plan, folders)
    name = f"{job.name}.sbatch"
    script = render_template("slurm/job.sbatch.j2", context, folders)
    fields = {option: dotted(field_of(plan, option)) for option, _ in options}
    bundle = Bundle(
        "slurm",
        {name: script},
        name,
        requests={name: Request({option: value or "" for option, value in options}, fields)},
        notes=tuple(resource_notes(plan)),
    )
    return bundle if job.evaluate is None else _with_evaluate(plan, folders, bundle)


def _with_evaluate(plan: Plan, folders: Sequence[str | Path], bundle: Bundle) -> Bundle:
    """Return the bundle together with the job that evaluates the trained model."""
    after = f"{plan.job.name}{EVALUATE_SUFFIX}.sbatch"
    text, options = evaluate_script(plan, folders)
    fields = {**bundle.requests[bundle.main].fields, "time": "evaluate.time"}
    request = Request({option: value or "" for option, value in options}, fields)
    note = (
        f"evaluate: {after} is a separate job that waits for this one; 'qwen-job submit' submits both, "
        "-o DIR writes both"
    )
    return replace(
        bundle,
        files={**bundle.files, after: text},
        requests={**bundle.requests, after: request},
        notes=(*bundle.notes, note),
        then=((after, dependency_of(plan)),),
    )


def _sweep(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    """Return what the template needs to know about a sweep.

    Raises:
        JobError: for runs that one array cannot hold.
    """
    check_common(plan)
    tasks = [task(run.plan, _context(run.plan, folders)) for run in plan.sweep]
    check_size(plan, tasks)
    return {"tasks": tasks, "sweep_folder": plan.job.output, "sweep_index": sweep_index(plan.sweep[0].plan)}


def _context(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    slurm = plan.job.slurm
    preflight = node_check(plan, slurm.min_allreduce_gbs) if slurm.preflight else ()
    return slurm_context(plan, folders, preflight=preflight, check_suite=check_words(plan))
