"""The Job that fetches the model and prepares the data before any GPU is allocated: what its templates are given.

It uses the template of the training pods, without GPUs, other pods and their network.
"""

from __future__ import annotations

from typing import Any

from qwen_job.render.kubernetes.decisions import CONFIG_PATH, Settings
from qwen_job.run.folder import TRAIN

# Kind of job -> (API group, resource), as a Role names them.
RESOURCES = {
    "pytorchjob": ("kubeflow.org", "pytorchjobs"),
    "trainjob": ("trainer.kubeflow.org", "trainjobs"),
    "jobset": ("jobset.x-k8s.io", "jobsets"),
}
_OF_TRAINING = {
    "kind": "prepare",
    "host_network": False,
    "priority_class": None,
    "node_selector": {},
    "gpu_products": [],
    "spread": None,
}


def prepare_context(chosen: Settings, context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of prepare.yaml.j2 and its role and account, made from the context of the training."""
    k = chosen.section
    name, starts = f"{chosen.name}-prepare", not k.suspend
    own_account = starts and k.prepare_account is None
    account = (name if own_account else k.prepare_account) if starts else k.service_account
    labels, annotations = context["pod_metadata"]["labels"], context["pod_metadata"]["annotations"]
    group, resource = RESOURCES[k.kind]
    return {
        **context,
        "k": {**context["k"], **_OF_TRAINING, "service_account": account},
        "prepare_metadata": {**context["metadata"], "name": name, "labels": labels},
        # Another instance, so that rules, services and lists about the training's pods do not include this one.
        "prepare_pod_metadata": {
            "labels": {**labels, "app.kubernetes.io/instance": name, "app.kubernetes.io/component": "prepare"},
            "annotations": {**k.annotations, "qwen-job/checksum": annotations["qwen-job/checksum"]},
        },
        "own_account": own_account,
        "token": starts,
        "container": "prepare",
        "container_security": {**context["container_security"], "capabilities": {"drop": ["ALL"]}},
        "command": _command(chosen, starts=starts),
        "env": [entry for entry in context["env"] if entry["name"] != "QWEN_JOB_NODE_RANK"],
        "resources": {key: {"cpu": k.prepare_cpu, "memory": k.prepare_memory} for key in ("requests", "limits")},
        "scheduler": "",
        "pod_affinity": None,
        "release_group": group,
        "release_resource": resource,
    }  # fmt: skip


def _command(chosen: Settings, *, starts: bool) -> list[str]:
    words = ["python3", "-m", "qwen_job.node.prepare_job", "--config", f"{CONFIG_PATH}/{TRAIN}"]
    gang, _, queue = (chosen.section.queue or "").partition(":")
    if starts:
        words += ["--release", f"{chosen.section.kind}/{chosen.name}"]
        words += ["--queue", queue] if gang == "kueue" else []
    return words
