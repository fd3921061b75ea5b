"""The follow-up job: evaluates the trained model on one GPU, in the container that trained it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.plan import Plan
from qwen_job.render.container import batch_settings
from qwen_job.render.engine import render_template
from qwen_job.render.evaluation import evaluate_words
from qwen_job.render.slurm.cpus_and_memory import all_runs, bytes_of
from qwen_job.render.slurm.gpu_request import other_gres
from qwen_job.render.slurm.sbatch_options import checked, evaluate_name, sbatch_options, slurm_gives_gpus, srun_options
from qwen_job.render.slurm.script_context import slurm_context
from qwen_job.text import GIB

# Options of sbatch that are sized for the training, or that are about that job only.
_OF_THE_TRAINING = {
    "array", "comment", "cpus-per-gpu", "cpus-per-task", "dependency", "exclusive", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist",
    "ntasks", "output", "signal", "switches", "time", "tres-per-job", "tres-per-task",
}  # fmt: skip


def evaluate_script(plan: Plan, folders: Sequence[str | Path]) -> tuple[str, list[tuple[str, str | None]]]:
    """Return the text and the options of NAME-evaluate.sbatch: one job, or for a sweep an array with a task per run."""
    one = one_gpu(plan)
    runs = [one_gpu(run.plan) for run in plan.sweep] or [one]
    wanted = sbatch_options(one)
    for name in ("signal", "comment"):
        wanted.pop(name, None)
    if plan.sweep:
        log = str(wanted["output"]).removesuffix("%j.out")
        wanted = {**wanted, "array": f"0-{len(runs) - 1}", "output": f"{log}%A_%a.out"}
    options = checked(one, wanted)
    context = {
        **_node(one, folders),
        "name": plan.job.name,
        "options": options,
        "tasks": [_task(run, folders) for run in runs],
        "array": bool(plan.sweep),
        "container": batch_settings(plan),
        "slurm_gives_gpus": slurm_gives_gpus(plan),
    }
    return render_template("slurm/evaluate.sbatch.j2", context, folders), options


def dependency_of(plan: Plan) -> str:
    """Return what the job waits for: a training that succeeds, each run's own in a sweep, the last link of a chain.

    The links of a chain may end by a signal, so the job waits for any ending and checks for done.json itself.
    """
    return "aftercorr" if plan.sweep else "afterany" if plan.job.slurm.chain else "afterok"


def one_gpu(plan: Plan) -> Plan:
    """Return the plan of the same job on one GPU, with nothing in it that was sized for the training."""
    job, slurm, cluster = plan.job, plan.job.slurm, plan.job.cluster
    own = {name: value for name, value in slurm.sbatch.items() if name not in _OF_THE_TRAINING} | other_gres(plan)
    step = {name: value for name, value in slurm.srun.items() if name not in _OF_THE_TRAINING}
    update = {
        "sbatch": own,
        "srun": step,
        "exclusive": False,
        "time": job.evaluate.time if job.evaluate else None,
        "memory": _share(plan),
        "cpus_per_task": _cpus(plan),
        "chain": None,
        "spare_nodes": 0,
        "requeue": slurm.requeue and not slurm.chain,
    }
    smaller = job.model_copy(
        update={
            "name": evaluate_name(job.name),
            "cluster": cluster.model_copy(update={"nodes": 1, "gpus_per_node": 1}),
            "slurm": slurm.model_copy(update=update),
            "sweep": {},
        }
    )
    # The memory that the training needs is no lower bound here.
    choice = plan.choice._replace(memory=None)
    return replace(plan, job=smaller, choice=choice, interconnect="none", sweep=())


def _cpus(plan: Plan) -> int | None:
    written = plan.job.slurm.cpus_per_task
    return max(1, written // plan.gpus_per_node) if written else None


def _share(plan: Plan) -> str | None:
    """Return one GPU's share of the node's memory: of slurm.memory or, unless it is a number above 0, of the plan's."""
    gpus, written = plan.gpus_per_node, bytes_of(plan.job.slurm.memory or "0")
    if written:
        return f"{max(1, written // gpus >> 20)}M"
    needed = [memory.host_bytes - memory.states_bytes for one in all_runs(plan) if (memory := one.memory) is not None]
    return f"{math.ceil(max(needed) / gpus / GIB)}G" if needed else None


def _task(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    return {
        "run": plan.job.output,
        "srun_options": srun_options(plan),
        "node_script": _node(plan, folders)["node_script"],
    }


def _node(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    return slurm_context(plan, folders, launcher="evaluate", evaluate=evaluate_words(plan))
