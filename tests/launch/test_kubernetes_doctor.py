"""The doctor against recorded clusters."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwen_job.errors import ClusterRefused
from qwen_job.launch.kubernetes_doctor import profile, survey
from tests.launch.test_kubernetes import Recorded, items

CRDS = (0, "pods\npytorchjobs.kubeflow.org\njobsets.jobset.x-k8s.io\n", "")
FORBIDDEN = (1, "", 'User "u" cannot list resource "nodes" in API group "" at the cluster scope')
UNKNOWN = (1, "", 'error: the server doesn\'t have a resource type "localqueues"')


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Recorded(tmp_path)


def named(name: str) -> dict[str, dict[str, str]]:
    return {"metadata": {"name": name}}


def test_one_product_and_one_queue_become_the_profile(kubectl: Recorded) -> None:
    node = {
        "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "A100"}},
        "status": {"allocatable": {"nvidia.com/gpu": "8", "rdma/hca": "1"}},
    }
    kubectl.answers(
        ("api-resources", CRDS),
        ("get nodes", items(node, node)),
        ("get storageclasses", items(named("fast"))),
        ("get localqueues", items(named("team"))),
    )
    found = survey()
    assert (found.gpu_products, found.rdma, found.storage_classes) == ({"A100": 16}, ("rdma/hca",), ("fast",))
    section = {"kind": "pytorchjob", "gpu_products": ["A100"], "queue": "kueue:team"}
    assert yaml.safe_load(profile(found)) == {"kubernetes": section}


def test_what_may_not_be_seen_is_named(kubectl: Recorded) -> None:
    kubectl.answers(("api-resources", CRDS), ("get nodes", FORBIDDEN), ("get localqueues", UNKNOWN), ("get", items()))
    assert survey().unknown == ("nodes",)


def test_a_cluster_without_any_kind_is_refused(kubectl: Recorded) -> None:
    kubectl.answers(("api-resources", (0, "pods\n", "")), ("get", items()))
    with pytest.raises(ClusterRefused, match="none of PyTorchJob, TrainJob, JobSet"):
        profile(survey())
