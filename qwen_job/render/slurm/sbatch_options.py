"""The options of sbatch and srun: what the plan asks for, with the user's own options on top.

Everything else in this package starts from here; so does the launcher, for the names that it finds in the queue.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen_job.errors import JobError
from qwen_job.job.slurm_time import slurm_seconds
from qwen_job.plan import Plan
from qwen_job.render.container import srun_options as container_options
from qwen_job.render.quote import Unrepresentable, sbatch
from qwen_job.render.slurm.conflicts import option_problems
from qwen_job.render.slurm.cpus_and_memory import planned_cpus, planned_memory, whole_nodes, written_cpus
from qwen_job.render.slurm.gpu_request import Options, gpu_request

# The signal may come up to a minute early or late, and a step must end before the save begins.
SIGNAL_MARGIN_SECONDS = 120
_MOST_SIGNAL_SECONDS = 65535
# A job's comment is this and its run folder, so that the queue shows where the run is.
COMMENT = "qwen-job:"
EVALUATE_SUFFIX = "-evaluate"


def sbatch_options(plan: Plan) -> Options:
    """Return long option -> value (None: a flag) for the #SBATCH lines; the user's own options override the planned.

    Raises:
        JobError: for options that contradict the job or each other.
    """
    if problems := list(option_problems(plan)):
        raise JobError(problems)
    slurm, array = plan.job.slurm, _array_options(plan)
    cpus, memory = planned_cpus(plan), planned_memory(plan)
    log_dir = f"{slurm.log_dir.rstrip('/').replace('%', '%%')}/" if slurm.log_dir else ""
    signal = signal_seconds(plan)
    _check_signal(plan, signal)
    planned: Options = {
        "job-name": plan.job.name,
        "nodes": str(plan.nodes + slurm.spare_nodes),
        **({"no-kill": None} if slurm.spare_nodes else {}),
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
    if len(comment.encode()) <= 1000 and _is_representable(comment):
        planned["comment"] = comment
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(slurm, name)
        if value is not None:
            planned[name] = value
    merged = _override(planned, slurm.sbatch)
    # The planned gres already includes what the user requests besides GPUs.
    return {**merged, **({"gres": planned["gres"]} if "gres" in planned and "gres" in merged else {})}


def srun_options(plan: Plan) -> list[str]:
    """Return the words after srun, those of pyxis included."""
    slurm = plan.job.slurm
    planned: Options = {
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
    merged = _override(planned, slurm.srun)
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in merged.items()]
    return [*words, *container_options(plan)]


def checked(plan: Plan, options: Options) -> list[tuple[str, str | None]]:
    """Return the options as pairs.

    Raises:
        JobError: for values that an #SBATCH line cannot hold, each with its field.
    """
    problems = []
    for name, value in options.items():
        try:
            sbatch(name)
            sbatch(value or "")
        except Unrepresentable as error:
            problems.append(plan.job.problem(field_of(plan, name), f"{error}"))
    if problems:
        raise JobError(problems)
    return list(options.items())


def field_of(plan: Plan, option: str) -> tuple[str, ...]:
    """Return the field of job.yaml that ``option`` comes from."""
    if option in plan.job.slurm.sbatch:
        return ("slurm", "sbatch", option)
    fields = {
        "job-name": ("name",),
        "nodes": ("slurm", "spare_nodes") if plan.job.slurm.spare_nodes else ("cluster", "nodes"),
        "output": ("slurm", "log_dir"),
        "mem": ("slurm", "memory"),
        "signal": ("slurm", "signal_seconds"),
        "gres": ("slurm", "gpu_type"),
        "gpus-per-node": ("slurm", "gpu_type"),
    }
    return fields.get(option, ("slurm", option.replace("-", "_")))


def limit_seconds(plan: Plan) -> int | None:
    """Return the time limit that the job requests; None where the partition's applies."""
    written = plan.job.slurm.sbatch.get("time")
    return slurm_seconds(written) if isinstance(written, str) else plan.job.slurm.time


def signal_seconds(plan: Plan) -> int:
    """Return how long before the time limit Slurm sends its signal; 0 for no signal.

    A job that requests no time limit has its partition's.
    """
    limit, written = limit_seconds(plan), plan.job.slurm.signal_seconds
    if written is not None:
        return written
    signal = plan.job.retry.grace + SIGNAL_MARGIN_SECONDS
    return signal if limit is None else min(signal, limit // 2)


def slurm_gives_gpus(plan: Plan) -> bool:
    """Tell whether Slurm itself assigns the GPUs of a step, and so sets CUDA_VISIBLE_DEVICES."""
    return not plan.gpu.is_cpu and plan.job.slurm.gpu_request != "none"


def slurm_time(seconds: int) -> str:
    """Write seconds as Slurm's days-hours:minutes:seconds."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02}:{minute:02}:{second:02}" if day else f"{hour:02}:{minute:02}:{second:02}"


def evaluate_name(name: str) -> str:
    """Return the name of the job that evaluates the model which the job ``name`` trains."""
    return name[: 63 - len(EVALUATE_SUFFIX)].rstrip("._-") + EVALUATE_SUFFIX


def _array_options(plan: Plan) -> dict[str, str]:
    """Return the options that make the job an array; none for a plain job.

    Raises:
        JobError: for an array of the user's own, or a chain that cannot be one.
    """
    slurm = plan.job.slurm
    if "array" in slurm.sbatch:
        message = "would start several jobs in one run folder; use sweep for parallel runs, or slurm.chain"
        raise JobError([plan.job.problem(("slurm", "sbatch", "array"), message)])
    if slurm.chain and plan.job.sweep:
        message = "cannot be combined with sweep, because both are arrays; submit one job per value"
        raise JobError([plan.job.problem(("slurm", "chain"), message)])
    if slurm.chain and slurm.requeue and plan.job.wrote("slurm", "requeue"):
        message = "replaces requeueing: remove slurm.requeue: true, or the chain"
        raise JobError([plan.job.problem(("slurm", "chain"), message)])
    if slurm.chain:
        return {"array": f"0-{slurm.chain - 1}%1", "output": "%x-%A.out"}
    if plan.sweep:
        limit = f"%{slurm.array_limit}" if slurm.array_limit else ""
        return {"array": f"0-{len(plan.sweep) - 1}{limit}", "output": "%x-%A_%a.out"}
    return {}


def _check_signal(plan: Plan, signal: int) -> None:
    """Reject a signal before the job begins, or one that Slurm cannot represent.

    Raises:
        JobError: names ``slurm.signal_seconds``.
    """
    most = min(limit_seconds(plan) or _MOST_SIGNAL_SECONDS + 1, _MOST_SIGNAL_SECONDS + 1)
    if signal >= most:
        message = f"{signal} s is longer than the job may run: use a value below {most}, or remove the line"
        raise JobError([plan.job.problem(("slurm", "signal_seconds"), message)])


def _override(planned: Options, written: Mapping[str, str | bool | None]) -> Options:
    """Override the planned options by the user's: true and null are flags, false removes an option."""
    merged: dict[str, str | bool | None] = {**planned, **written}
    return {name: value if isinstance(value, str) else None for name, value in merged.items() if value is not False}


def _is_representable(value: str) -> bool:
    try:
        sbatch(value)
    except Unrepresentable:
        return False
    return True
