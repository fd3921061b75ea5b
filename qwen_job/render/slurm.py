"""Target slurm: one self-contained sbatch script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwen_job.errors import JobError
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.container import srun_options
from qwen_job.render.context import shell_context
from qwen_job.render.engine import render_template
from qwen_job.render.quote import Unrepresentable, sbatch

# The signal may come up to a minute early or late, and a step must end before the save begins.
SIGNAL_MARGIN_SECONDS = 120
# How a job in the queue tells its run's folder.
COMMENT = "qwen-job:"


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return NAME.sbatch. Errors: :class:`JobError` for options that contradict the job."""
    job, slurm = plan.job, plan.job.slurm
    context = shell_context(
        plan,
        folders,
        python=slurm.python,
        runtime=job.container.runtime,
        modules=slurm.modules,
        setup=slurm.setup,
        preflight=_preflight(plan) if slurm.preflight else (),
        scratch=slurm.scratch,
    )
    context |= {
        "options": _checked(plan, sbatch_options(plan)),
        "srun_options": _srun_options(plan),
        "requeue": slurm.requeue,
        "max_retries": job.retry.max_retries,
        "max_without_progress": job.retry.max_without_progress,
    }
    name = f"{job.name}.sbatch"
    return Bundle("slurm", {name: render_template("slurm/job.sbatch.j2", context, folders)}, name)


def _preflight(plan: Plan) -> list[str]:
    """Return the options of 'qwen-job node check' that the plan knows."""
    words = ["--gpus", "0" if plan.gpu.is_cpu else str(plan.gpus_per_node), "--nodes", str(plan.nodes)]
    if plan.interconnect not in ("none", "auto"):
        words += ["--fabric", plan.interconnect]
    if plan.sharding.memory is not None:
        words += ["--disk-bytes", str(plan.sharding.memory.disk_bytes)]
    return words


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
    fields = {"job-name": ("name",), "output": ("slurm", "log_dir"), "mem": ("slurm", "memory")}
    return fields.get(option, ("slurm", "gpu_type" if option in ("gres", "gpus-per-node") else option))


def sbatch_options(plan: Plan) -> dict[str, str | None]:
    """Return long option -> value (None: a flag) for the #SBATCH lines; the user's own are laid over the planned."""
    slurm, cluster = plan.job.slurm, plan.job.cluster
    cpus = slurm.cpus_per_task or (cluster.cpus_per_gpu * plan.gpus_per_node if cluster.cpus_per_gpu else None)
    exclusive = plan.nodes > 1 and not plan.gpu.is_cpu if slurm.exclusive is None else slurm.exclusive
    log_dir = f"{slurm.log_dir.rstrip('/').replace('%', '%%')}/" if slurm.log_dir else ""
    signal = slurm.signal_seconds
    if signal is None and slurm.time is not None:
        signal = min(plan.job.retry.grace + SIGNAL_MARGIN_SECONDS, slurm.time // 2)
    planned: dict[str, str | None] = {
        "job-name": plan.job.name,
        "nodes": str(plan.nodes),
        "ntasks-per-node": "1",
        **_gpu_request(plan),
        **({"cpus-per-task": str(cpus)} if cpus else {}),
        **({"mem": slurm.memory} if slurm.memory is not None else {}),
        **({"exclusive": None} if exclusive else {}),
        **({"time": slurm_time(slurm.time)} if slurm.time else {}),
        "output": f"{log_dir}%x-%j.out",
        "open-mode": "append",
        "requeue" if slurm.requeue else "no-requeue": None,
        **({"signal": f"B:USR1@{signal}"} if signal else {}),
    }
    comment = COMMENT + plan.job.output
    if len(comment.encode()) <= 1000 and _representable(comment):
        planned["comment"] = comment
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(slurm, name)
        if value is not None:
            planned[name] = value
    for name in ("nodes", "ntasks-per-node"):
        if name in slurm.sbatch:
            message = f"is planned from cluster ({planned[name]}); remove it and set cluster's fields"
            raise JobError([plan.job.problem(("slurm", "sbatch", name), message)])
    return laid_over(planned, slurm.sbatch)


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


def _gpu_request(plan: Plan) -> dict[str, str | None]:
    slurm = plan.job.slurm
    if plan.gpu.is_cpu or slurm.gpu_request == "none":
        return {}
    kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    if slurm.gpu_request == "gres":
        return {"gres": f"gpu:{kind}{plan.gpus_per_node}"}
    return {"gpus-per-node": f"{kind}{plan.gpus_per_node}"}


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
    cpus = sbatch_options(plan).get("cpus-per-task")
    if cpus:
        # Since 22.05 srun does not inherit it from the job.
        planned["cpus-per-task"] = cpus
    merged = laid_over(planned, slurm.srun)
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in merged.items()]
    return [*words, *srun_options(plan)]
