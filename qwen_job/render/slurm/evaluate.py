"""The follow-up job: measures the trained model on one GPU, in the container that trained it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError
from qwen_job.plan import Plan
from qwen_job.render.context import shell_context
from qwen_job.render.engine import render_template
from qwen_job.render.slurm.gpus import other_gres
from qwen_job.render.slurm.resources import all_runs, bytes_of
from qwen_job.text import GIB

# What the user asked sbatch for is sized for the training, or is about that job only.
_OF_THE_TRAINING = {
    "array", "comment", "cpus-per-gpu", "cpus-per-task", "dependency", "exclusive", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "job-name", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist",
    "ntasks", "output", "signal", "switches", "time", "tres-per-job", "tres-per-task",
}  # fmt: skip
SUFFIX = "-evaluate"

Options = dict[str, str | None]


def evaluate_script(
    plan: Plan,
    folders: Sequence[str | Path],
    checked: Callable[[Plan, Options], list[tuple[str, str | None]]],
    options: Callable[[Plan], Options],
    srun_options: Callable[[Plan], list[str]],
) -> str:
    """Return NAME-evaluate.sbatch: one job, or for a sweep an array with a task for each run.

    The functions are those of the training's own script. Errors: :class:`JobError` when no data to measure on is named.
    """
    one = one_gpu(plan)
    runs = [one_gpu(run.plan) for run in plan.sweep] or [one]
    asked = options(one)
    for name in ("signal", "comment"):
        asked.pop(name, None)
    if plan.sweep:
        log = str(asked["output"]).removesuffix("%j.out")
        asked = {**asked, "array": f"0-{len(runs) - 1}", "output": f"{log}%A_%a.out"}
    context = {
        "options": checked(one, asked),
        "tasks": [_task(run, folders, srun_options(run)) for run in runs],
        "array": bool(plan.sweep),
        "slurm_gives_gpus": not plan.gpu.is_cpu and plan.job.slurm.gpu_request != "none",
    }
    first = {**_node(one, folders), "name": plan.job.name}
    return render_template("slurm/evaluate.sbatch.j2", {**first, **context}, folders)


def evaluate_name(name: str) -> str:
    """Return the name of the job that measures what the job called ``name`` trains."""
    return name[: 63 - len(SUFFIX)].rstrip("._-") + SUFFIX


def dependency_of(plan: Plan) -> str:
    """Return what the job waits for: the training's success, each run's own in a sweep, the last link of a chain.

    A chain's links may end by a signal, so its end is awaited, and the script looks for done.json itself.
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
    # What the training needs is not what is measured against.
    sharding = plan.sharding._replace(memory=None)
    return replace(plan, job=smaller, sharding=sharding, interconnect="none", sweep=())


def _cpus(plan: Plan) -> int | None:
    written = plan.job.slurm.cpus_per_task
    return max(1, written // plan.gpus_per_node) if written else None


def _share(plan: Plan) -> str | None:
    """Return one GPU's share of the memory that is written or, without or of all of a node (0), that the plan needs."""
    gpus, written = plan.gpus_per_node, bytes_of(plan.job.slurm.memory or "0")
    if written:
        return f"{max(1, written // gpus >> 20)}M"
    needed = [memory.host_bytes for one in all_runs(plan) if (memory := one.sharding.memory) is not None]
    return f"{math.ceil(max(needed) / gpus / GIB)}G" if needed else None


def _task(plan: Plan, folders: Sequence[str | Path], srun_options: list[str]) -> dict[str, Any]:
    return {
        "run": plan.job.output,
        "srun_options": srun_options,
        "node_script": _node(plan, folders)["node_script"],
    }


def _node(plan: Plan, folders: Sequence[str | Path]) -> dict[str, Any]:
    slurm = plan.job.slurm
    return shell_context(
        plan,
        folders,
        python=slurm.python,
        runtime=plan.job.container.runtime,
        modules=slurm.modules,
        setup=slurm.setup,
        launcher="evaluate",
        scratch=slurm.scratch,
        evaluate=_words(plan),
    )


def _words(plan: Plan) -> list[str]:
    """Return the words after ``qwen-job``."""
    wanted = plan.job.evaluate
    assert wanted is not None
    data = wanted.data or next((file.path for file in plan.job.data.eval), None)
    if data is None:
        message = "is required, because data.eval is empty: name conversations that are not trained on"
        raise JobError([plan.job.problem(("evaluate", "data"), message)])
    words = ["evaluate", plan.job.output, "--data", data, "--samples", str(wanted.samples)]
    words += ["--max-new-tokens", str(wanted.max_new_tokens)]
    return words if wanted.before else [*words, "--no-before"]
