"""Whether what ``notify:`` and ``monitor:`` refer to can be used on a target."""

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
        elif target in ("kubernetes", "helm", "kubeflow"):
            k = plan.job.kubernetes
            if name not in k.secret_env and not k.env_from_secrets:
                yield plan.job.problem(path, f"no secret gives the pods {name}: {_way(name, target)}")
        elif target == "hostfile":
            yield plan.job.problem(path, f"ssh passes no variables on: {_way(name, target)}")
    if target == "hostfile" and plan.job.notify and plan.job.hostfile.launcher != "torchrun":
        launcher = plan.job.hostfile.launcher
        message = f"hostfile.launcher {launcher} has no launcher that sends messages: write torchrun, or remove notify"
        yield plan.job.problem(("notify",), message)


def sweep_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem if all runs of a sweep would write the same file for Prometheus."""
    files = [run.plan.job.monitor.prometheus_file for run in plan.sweep]
    if len(files) > 1 and files[0] and len(set(files)) < len(files):
        message = "several runs of the sweep would write it: remove it, each run has its metrics.prom in its own folder"
        yield plan.job.problem(("monitor", "prometheus_file"), message)


def _way(name: str, target: str) -> str:
    if target in ("kubernetes", "helm", "kubeflow"):
        return f"use kubernetes.secret_env: {{{name}: SECRET/KEY}}"
    if target == "hostfile":
        return "put it into a file that the first host can read, and write file:/PATH"
    return f"export {name} in the shell that {'submits' if target == 'slurm' else 'starts'} the job"
