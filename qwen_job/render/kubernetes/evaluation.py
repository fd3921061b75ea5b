"""The Job that evaluates the trained model on one GPU, and the one that starts it: what their templates are given.

NAME-evaluate is created suspended, so that no GPU waits. NAME-starter, a pod without GPUs, waits for the training and
starts it. Both have the template of the training pods.
"""

from __future__ import annotations

from typing import Any

from qwen_job.render.evaluation import RUN
from qwen_job.render.kubernetes.decisions import Settings
from qwen_job.render.kubernetes.needs import Evaluation
from qwen_job.render.kubernetes.prepare import OF_TRAINING, RESOURCES, account_of, side_context
from qwen_job.render.quote import literal

VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"
_STARTER_NEEDS = {"cpu": "250m", "memory": "256Mi"}
_OF_SEVERAL_PODS = {"host_network": False, "spread": None}


def evaluate_context(chosen: Settings, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the Job NAME-evaluate, made from the context of the training."""
    wanted, k = chosen.evaluate, chosen.section
    assert wanted is not None
    gang, _, queue = (k.queue or "").partition(":")
    more = {VOLCANO_QUEUE: queue} if gang == "volcano" and queue else {}
    return {
        **side_context(context, f"{chosen.name}-evaluate", "evaluate", more),
        "k": {**context["k"], **_OF_SEVERAL_PODS},
        "side_suspend": True,
        "side_deadline": wanted.time,
        "command": ["python3", "-m", "qwen_job", "evaluate", chosen.output, *_options(chosen)],
        "resources": _resources(chosen, wanted),
    }


def starter_context(chosen: Settings, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the Job NAME-starter, its account and its role."""
    name, evaluates = f"{chosen.name}-starter", f"{chosen.name}-evaluate"
    account = account_of(chosen, name)
    return {
        **side_context(context, name, "starter"),
        "k": {**context["k"], **OF_TRAINING, "service_account": account},
        "side_access": [
            (*RESOURCES[chosen.section.kind], chosen.name, ["get"]),
            ("batch", "jobs", evaluates, ["get", "patch"]),
        ],
        "own_account": account == name,
        "token": True,
        "container": "starter",
        "scheduler": "",
        "container_security": {**context["container_security"], "capabilities": {"drop": ["ALL"]}},
        "command": _starter_command(chosen, evaluates),
        "resources": {"requests": _STARTER_NEEDS, "limits": _STARTER_NEEDS},
    }


def _starter_command(chosen: Settings, evaluates: str) -> list[str]:
    gang, _, queue = (chosen.section.queue or "").partition(":")
    words = ["python3", "-m", "qwen_job.node.start_evaluation", "--run", chosen.output]
    words += ["--job", f"{chosen.section.kind}/{chosen.name}", "--release", evaluates]
    return words + (["--queue", queue] if gang == "kueue" else [])


def one_gpu(chosen: Settings, pod: dict[str, Any]) -> dict[str, Any]:
    """Set the pod's GPUs to one, also where the user's own fields name the number of the training."""
    resource = chosen.section.gpu_resource
    for container in pod["containers"] if resource else ():
        for amounts in (container.get("resources") or {}).values():
            if isinstance(amounts, dict) and resource in amounts:
                amounts[resource] = "1"
    return pod


def _resources(chosen: Settings, wanted: Evaluation) -> dict[str, dict[str, str]]:
    k = chosen.section
    own = {"cpu": wanted.cpu, **({"memory": wanted.memory} if wanted.memory else {})}
    gpus = {k.gpu_resource: "1"} if k.gpu_resource else {}
    fixed = {name: amount for name, amount in own.items() if getattr(k, name) or name in k.resources}
    return {"requests": {**own, **gpus}, "limits": {**fixed, **gpus}}


def _options(chosen: Settings) -> list[str]:
    options = chosen.evaluate.options if chosen.evaluate else ()
    own = [f"{chosen.output}{word.removeprefix(RUN)}" if word.startswith(f"{RUN}/") else word for word in options]
    return [literal(word) for word in own]
