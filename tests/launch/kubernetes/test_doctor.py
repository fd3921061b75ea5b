"""The doctor against recorded clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import ClusterRefused
from qwen_job.job import load_job
from qwen_job.launch.kubernetes.doctor import profile, survey
from qwen_job.resources import resource
from tests.support.kubectl import CRDS, FORBIDDEN, UNKNOWN, Recorded, items, node


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Recorded(tmp_path)


def named(name: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"name": name}}


def claim(name: str, mode: str = "ReadWriteMany") -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"accessModes": [mode]}}


def test_one_product_and_one_queue_become_the_profile(kubectl: Recorded) -> None:
    big = node("NVIDIA-A100-SXM4-80GB", "8", "nvidia.com/gpu", "team/gpu", cpu="98", memory="1056964608Ki")
    big["status"]["allocatable"]["rdma/hca"] = "1"
    kubectl.answers(
        ("api-resources", CRDS),
        ("get nodes", items(big, big, {**big, "status": {"allocatable": {"cpu": "7910m"}}})),
        ("get storageclasses", items(named("fast"))),
        ("get localqueues", items(named("team"))),
        ("get persistentvolumeclaims", items(claim("team-storage"), claim("scratch", "ReadWriteOnce"))),
    )
    found = survey()
    products = {"NVIDIA-A100-SXM4-80GB": 16}
    assert (found.gpu_products, found.rdma, found.storage_classes) == (products, ("rdma/hca",), ("fast",))
    section = {
        "kind": "pytorchjob", "gpu_products": list(products), "queue": "kueue:team",
        "tolerations": [{"key": "team/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [{"name": "shared", "mount_path": "/shared", "pvc": "team-storage"}],
    }  # fmt: skip
    cluster = {"gpu": "A100-80G", "gpus_per_node": 8, "cpus_per_gpu": 12, "memory_gib": 1008}
    assert yaml.safe_load(profile(found)) == {"cluster": cluster, "kubernetes": section}


def test_the_profile_is_a_layer_of_a_job(kubectl: Recorded, tmp_path: Path) -> None:
    volcano = (0, "trainjobs.trainer.kubeflow.org\npodgroups.scheduling.volcano.sh\n", "")
    kubectl.answers(("api-resources", volcano), ("get nodes", items(node(cpu="16", memory="64Gi"))), ("get", items()))
    (tmp_path / "site.yaml").write_text(profile(survey()))
    job = load_job([tmp_path / "site.yaml", resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")])
    assert (job.kubernetes.kind, job.kubernetes.queue, job.cluster.memory_gib) == ("trainjob", "volcano", 64)


@pytest.mark.parametrize("nodes", [[node("A"), node("B")], [node(None)], [], [node("Unheard-Of", "4", memory="1e3")]])
def test_what_differs_or_is_unknown_is_left_to_the_person(kubectl: Recorded, nodes: list[dict[str, Any]]) -> None:
    kubectl.answers(("api-resources", CRDS), ("get nodes", items(*nodes)), ("get", items()))
    assert "gpu" not in yaml.safe_load(profile(survey())).get("cluster", {})


def test_what_may_not_be_seen_is_named(kubectl: Recorded) -> None:
    kubectl.answers(("api-resources", CRDS), ("get nodes", FORBIDDEN), ("get localqueues", UNKNOWN), ("get", items()))
    assert survey().unknown == ("nodes",)


def test_a_cluster_without_any_kind_is_refused(kubectl: Recorded) -> None:
    kubectl.answers(("api-resources", (0, "pods\n", "")), ("get", items()))
    with pytest.raises(ClusterRefused, match="none of PyTorchJob, TrainJob, JobSet"):
        profile(survey())
