"""submit, status, cancel and doctor through a real kubectl, on a server that remembers what it was asked."""

from __future__ import annotations

import pytest

from qwen_job.errors import ClusterRefused
from qwen_job.job import load_job
from qwen_job.launch.kubernetes.backend import KubernetesBackend
from qwen_job.launch.kubernetes.doctor import survey
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource
from tests.support.apiserver import ApiServer

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
OWN_CLAIM = "kubernetes.volumes=[{name: shared, mount_path: /shared, size: 1Ti}]"


def bundle(*sets: str) -> Bundle:
    return render(make_plan(load_job([JOB], sets=[OWN_CLAIM, *sets])), "kubernetes")


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob"])
def test_a_job_is_submitted_seen_and_cancelled(server: ApiServer, kind: str) -> None:
    sets = [f"kubernetes.kind={kind}", "kubernetes.prepare=true", "kubernetes.network_policy=true"]
    assert KubernetesBackend().submit(bundle(*sets)).id == "default/qwen-7b-chat"
    made = [name.partition("/")[0].lower() for name in server.made]
    assert made[-1] == kind and made.index("rolebinding") < made.index("job")
    (entry,) = KubernetesBackend().entries()
    assert (entry.id, entry.run) == ("default/qwen-7b-chat", "/shared/runs/qwen-7b-chat")
    with pytest.raises(ClusterRefused, match="already exists"):
        KubernetesBackend().submit(bundle(*sets))
    KubernetesBackend().cancel(entry)
    assert {thing["kind"] for thing in server.objects.values()} == {"PersistentVolumeClaim"}


def test_what_a_past_job_left_is_cleared_away(server: ApiServer) -> None:
    KubernetesBackend().submit(bundle())
    (path,) = [place for place, thing in server.objects.items() if thing["kind"] == "PyTorchJob"]
    del server.objects[path]
    KubernetesBackend().submit(bundle("train.learning_rate=3.0e-5"))
    (config,) = server.find("ConfigMap")
    assert "3.0e-05" in config["data"]["train.yaml"]


def test_a_claim_that_is_not_there_is_named(server: ApiServer) -> None:
    with pytest.raises(ClusterRefused, match=r"kubernetes\.volumes: there is no claim 'mine'"):
        KubernetesBackend().submit(bundle("kubernetes.volumes=[{name: shared, mount_path: /shared, pvc: mine}]"))
    assert server.made == []


@pytest.mark.usefixtures("server")
def test_the_doctor_sees_the_kinds() -> None:
    assert survey().kinds == ("pytorchjob", "trainjob", "jobset")
