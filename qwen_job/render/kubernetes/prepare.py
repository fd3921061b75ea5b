"""The Job that fetches the model and prepares the data before any GPU is allocated: what its templates are given.

It uses the template of the training pods, without GPUs, other pods and their network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_job.render.kubernetes.decisions import CONFIG_PATH, Settings, suite_words
from qwen_job.run.folder import TRAIN

CHECKSUM = "qwen-job/checksum"
# Kind of job -> (API group, resource), as a Role names them.
RESOURCES = {
    "pytorchjob": ("kubeflow.org", "pytorchjobs"),
    "trainjob": ("trainer.kubeflow.org", "trainjobs"),
    "jobset": ("jobset.x-k8s.io", "jobsets"),
}
OF_TRAINING = {
    "kind": "prepare",
    "host_network": False,
    "priority_class": None,
    "node_selector": {},
    "gpu_products": [],
    "spread": None,
}


def prepare_context(chosen: Settings, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of the Job NAME-prepare, its role and account, made from the context of the training."""
    k = chosen.section
    name, starts = f"{chosen.name}-prepare", not k.suspend
    account = account_of(chosen, name)
    return {
        **side_context(context, name, "prepare"),
        "k": {**context["k"], **OF_TRAINING, "service_account": account},
        "side_access": [(*RESOURCES[k.kind], chosen.name, ["get", "patch"])],
        "own_account": account == name,
        "token": starts,
        "container": "prepare",
        "container_security": {**context["container_security"], "capabilities": {"drop": ["ALL"]}},
        "command": _command(chosen, starts=starts),
        "resources": {key: {"cpu": k.prepare_cpu, "memory": k.prepare_memory} for key in ("requests", "limits")},
        "scheduler": "",
    }


def side_context(
    context: dict[str, Any], name: str, component: str, annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the context of a Job beside the training, whose pods are no part of it."""
    labels, checksum = context["pod_metadata"]["labels"], context["pod_metadata"]["annotations"][CHECKSUM]
    own = {**context["k"]["annotations"], CHECKSUM: checksum, **(annotations or {})}
    return {
        **context,
        "side_metadata": {**context["metadata"], "name": name, "labels": labels},
        # Another instance, so that rules, services and lists about the training's pods do not include this one.
        "side_pod_metadata": {
            "labels": {**labels, "app.kubernetes.io/instance": name, "app.kubernetes.io/component": component},
            "annotations": own,
        },
        "side_suspend": None,
        "side_deadline": None,
        "env": [entry for entry in context["env"] if entry["name"] != "QWEN_JOB_NODE_RANK"],
        "pod_affinity": None,
    }


def account_of(chosen: Settings, own: str) -> str | None:
    """Return the account of a pod that starts a job: ``own``, which is created for it, or the user's."""
    k = chosen.section
    return k.service_account if k.suspend else k.prepare_account or own


def _command(chosen: Settings, *, starts: bool) -> list[str]:
    words = ["python3", "-m", "qwen_job.node.prepare_job", "--config", f"{CONFIG_PATH}/{TRAIN}", *suite_words(chosen)]
    gang, _, queue = (chosen.section.queue or "").partition(":")
    if starts:
        words += ["--release", f"{chosen.section.kind}/{chosen.name}"]
        words += ["--queue", queue] if gang == "kueue" else []
    return words
