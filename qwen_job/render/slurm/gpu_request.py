"""The GPUs of a Slurm job: one request, in the form that the site or the user prefers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qwen_job.errors import Problem
from qwen_job.plan import Plan

# All options that request GPUs; each is compared with cluster.gpus_per_node.
WAYS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-task", "tres-per-job")
_GRES = r"(?:gres[:/])?gpu(?:[:=/]|$)"
_COUNT = r"(?:(?P<kind>[^:=]*[^:=\d][^:=]*)[:=]?)?(?P<count>\d+)?"

# Long option -> value; None for a flag.
Options = dict[str, str | None]


def gpu_request(plan: Plan) -> Options:
    """Return the options that request the job's GPUs; the user's own request replaces the planned one."""
    slurm, written = plan.job.slurm, plan.job.slurm.sbatch
    gres = written.get("gres")
    others = _others(gres) if isinstance(gres, str) else ""
    if plan.gpu.is_cpu or slurm.gpu_request == "none" or any(_asks(plan, "sbatch", way) for way in WAYS):
        return {}
    kind = f"{slurm.gpu_type}:" if slurm.gpu_type else ""
    if slurm.gpu_request == "gres":
        return {"gres": f"gpu:{kind}{plan.gpus_per_node}{f',{others}' if others else ''}"}
    return {"gpus-per-node": f"{kind}{plan.gpus_per_node}"}


def other_gres(plan: Plan) -> Options:
    """Return what ``slurm.sbatch.gres`` requests besides GPUs, such as local disk, which any job on a node needs."""
    gres = plan.job.slurm.sbatch.get("gres")
    others = _others(gres) if isinstance(gres, str) else ""
    return {"gres": others} if others else {}


def gpu_problems(plan: Plan, section: str) -> Iterator[Problem]:
    """Yield the problems with GPUs requested in ``slurm.sbatch`` or ``slurm.srun``."""
    slurm, want = plan.job.slurm, plan.gpus_per_node
    asked = [way for way in WAYS if _asks(plan, section, way)]
    for way in asked:
        path = ("slurm", section, way)
        kinds, count = _gpus(way, str(getattr(slurm, section)[way]))
        if plan.gpu.is_cpu:
            yield plan.job.problem(path, "requests GPUs, but cluster.gpu is CPU: remove it")
        elif way == "gpus-per-socket" or (way in ("gpus", "tres-per-job") and plan.nodes > 1):
            message = f"lets Slurm divide the GPUs, and each of {plan.nodes} nodes needs {want}: remove it"
            yield plan.job.problem(path, f"{message} (cluster.gpus_per_node requests them)")
        elif count != want:
            what = "an unknown number of GPUs" if count is None else f"{count} GPUs per node"
            message = f"requests {what}, but cluster.gpus_per_node is {want}: make them equal, or remove it"
            yield plan.job.problem(path, message)
        elif len(asked) > 1:
            yield plan.job.problem(path, f"requests the GPUs twice: keep one of {', '.join(asked)}")
        elif slurm.gpu_type and kinds != {slurm.gpu_type}:
            message = f"names {', '.join(sorted(kinds)) or 'no type'}, but slurm.gpu_type is {slurm.gpu_type!r}"
            yield plan.job.problem(path, f"{message}: set the type in one of them")


def _asks(plan: Plan, section: str, way: str) -> bool:
    """Tell whether an option of the user requests GPUs; ``gres`` and TRES may request other things."""
    value = getattr(plan.job.slurm, section).get(way)
    if way in ("gres", "tres-per-task", "tres-per-job"):
        return isinstance(value, str) and any(re.match(_GRES, part) for part in _parts(value))
    return isinstance(value, str)


def _others(gres: str) -> str:
    return ",".join(part for part in _parts(gres) if not re.match(_GRES, part) and part.lower() != "none")


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _gpus(way: str, value: str) -> tuple[set[str], int | None]:
    """Return the types and the number of GPUs in ``gpu:a100:2,lscratch:5`` or ``a100:2``; None if there is none."""
    parts = _parts(value)
    if way in ("gres", "tres-per-task", "tres-per-job"):
        parts = [part[found.end() :] for part in parts if (found := re.match(_GRES, part))]
    kinds: set[str] = set()
    total = 0
    for part in parts:
        found = re.fullmatch(_COUNT, re.sub(r"\(.*\)$", "", part))
        if not found:
            return kinds, None
        kinds |= {found["kind"]} if found["kind"] else set()
        total += int(found["count"] or 1)
    return kinds, total
