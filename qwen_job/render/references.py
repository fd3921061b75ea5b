"""Whether the references of ``notify:`` can be followed on a target: where a variable of the job may come from."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_job.errors import Problem
from qwen_job.job import Job
from qwen_job.job.notify import variables
from qwen_job.plan import Plan


def notify_variables(job: Job) -> list[str]:
    """Return the names of the variables that the webhooks' addresses and keys are in, each once."""
    return list(dict.fromkeys(name for _, _, name in variables(job.notify)))


def reference_problems(plan: Plan, target: str) -> Iterator[Problem]:
    """Yield a problem for each reference to a variable that no process on ``target`` would have."""
    for index, field, name in variables(plan.job.notify):
        path = ("notify", index, field)
        if name in plan.job.env:
            yield plan.job.problem(("env", name), f"is for a webhook, and others can read env; {_way(name, target)}")
        elif target in ("kubernetes", "helm"):
            k = plan.job.kubernetes
            if name not in k.secret_env and not k.env_from_secrets:
                yield plan.job.problem(path, f"no secret gives the pods {name}: {_way(name, target)}")
        elif target == "hostfile":
            yield plan.job.problem(path, f"ssh passes no variables on: {_way(name, target)}")
    if target == "hostfile" and plan.job.notify and plan.job.hostfile.launcher != "torchrun":
        launcher = plan.job.hostfile.launcher
        message = f"hostfile.launcher {launcher} has no launcher that sends messages: write torchrun, or remove notify"
        yield plan.job.problem(("notify",), message)


def _way(name: str, target: str) -> str:
    if target in ("kubernetes", "helm"):
        return f"use kubernetes.secret_env: {{{name}: SECRET/KEY}}"
    if target == "hostfile":
        return "put it into a file that the first host can read, and write file:/PATH"
    return f"export {name} in the shell that {'submits' if target == 'slurm' else 'starts'} the job"
