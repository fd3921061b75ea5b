"""What a user may not do does not stop what she may: a real kubectl on a server that forbids all but a Role's rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.job import load_job
from qwen_job.launch.find import find
from qwen_job.launch.kubernetes import backend
from qwen_job.launch.kubernetes.backend import KubernetesBackend
from qwen_job.launch.kubernetes.kubectl import Forbidden
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource
from tests.support.apiserver import ApiServer

DOCS = Path(__file__).resolve().parents[3] / "docs"
JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
Rule = dict[str, Any]
JOBS: Rule = {"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"]}
CONFIGS: Rule = {"apiGroups": [""], "resources": ["configmaps"]}


def documented(guide: str) -> list[Rule]:
    """Return the rules of the Role that a guide gives to copy."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / guide).read_text("utf-8"), re.DOTALL)
    (role,) = [block for block in map(yaml.safe_load, blocks) if block.get("kind") == "Role"]
    return list(role["rules"])


def bundle(*sets: str) -> Bundle:
    return render(make_plan(load_job([JOB], sets=sets)), "kubernetes")


@pytest.fixture
def forbidding(server: ApiServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ApiServer]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    backend._note.cache_clear()
    server.put("PersistentVolumeClaim", "v1", "shared")
    yield server


def pod(server: ApiServer, name: str) -> None:
    labels = {"app.kubernetes.io/name": "qwen-job", "app.kubernetes.io/instance": "qwen-7b-chat"}
    spec = {"containers": [{"name": "pytorch"}]}
    server.put("Pod", "v1", name, metadata={"labels": labels}, spec=spec, status={"phase": "Running"})


def test_both_guides_give_the_same_role() -> None:
    assert documented("kubernetes.md") == documented("kubernetes.zh-CN.md")


def test_the_role_of_the_guide_is_enough_for_every_command(
    forbidding: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    forbidding.rules = documented("kubernetes.md")
    KubernetesBackend().submit(bundle())
    pod(forbidding, "qwen-7b-chat-worker-0")
    forbidding.logs["qwen-7b-chat-worker-0"] = "step 3/9 · loss 0.5\n"
    said = 'pods "x" is forbidden: exceeded quota: q'
    forbidding.put("Event", "v1", "e", type="Warning", message=said, involvedObject={"name": "qwen-7b-chat"})
    (found,) = find(None, "kubernetes")
    assert (
        found.entry.pods == "1/2" and "1 of 2 pods missing; cluster: over the namespace's quota" in found.entry.reason
    )
    assert KubernetesBackend().logs(found.entry, follow=False) == 0
    KubernetesBackend().cancel(found.entry)
    assert [thing["kind"] for thing in forbidding.objects.values() if thing["kind"] not in ("Pod", "Event")] == [
        "PersistentVolumeClaim"
    ]
    out, err = capfd.readouterr()
    assert out == "step 3/9 · loss 0.5\n"
    (note,) = err.splitlines()
    assert "trainjobs" in note and "jobsets" in note and "pytorchjobs" not in note


def test_rights_on_the_job_alone_submit_show_and_cancel_it(
    forbidding: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    verbs = ["get", "list", "create", "patch", "delete"]
    forbidding.rules = [{**JOBS, "verbs": verbs}, {**CONFIGS, "verbs": ["get", "create", "patch", "delete"]}]
    KubernetesBackend().submit(bundle())
    (entry,) = KubernetesBackend().entries()
    assert (entry.state, entry.log) == ("pending", "qwen-7b-chat-worker-0")
    assert "pods" in capfd.readouterr().err
    KubernetesBackend().cancel(entry)
    assert not forbidding.find("PyTorchJob") and not forbidding.find("ConfigMap")
    assert capfd.readouterr().err == ""


def test_a_config_that_may_not_be_deleted_is_told_and_somebody_elses_is_left(
    forbidding: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    verbs = ["get", "list", "create", "patch", "delete"]
    KubernetesBackend().submit(bundle())
    forbidding.rules = [{**JOBS, "verbs": verbs}]
    (entry,) = KubernetesBackend().entries()
    KubernetesBackend().cancel(entry)
    assert not forbidding.find("PyTorchJob") and forbidding.find("ConfigMap")
    assert "configmap qwen-7b-chat" in capfd.readouterr().err.splitlines()[-1]
    forbidding.rules = [{**JOBS, "verbs": verbs}, {**CONFIGS, "verbs": ["get", "delete"]}]
    forbidding.find("ConfigMap")[0]["metadata"]["labels"] = {"app": "else"}
    KubernetesBackend().cancel(entry)
    assert forbidding.find("ConfigMap")


def test_a_job_that_may_not_be_deleted_keeps_what_it_has(forbidding: ApiServer) -> None:
    KubernetesBackend().submit(bundle())
    forbidding.rules = [{**JOBS, "verbs": ["get", "list"]}, {**CONFIGS, "verbs": ["get", "list", "delete"]}]
    (entry,) = KubernetesBackend().entries()
    with pytest.raises(Forbidden, match="no permission to delete pytorchjobs"):
        KubernetesBackend().cancel(entry)
    assert forbidding.find("ConfigMap")


def test_without_any_right_the_missing_one_is_named(forbidding: ApiServer) -> None:
    forbidding.rules = []
    with pytest.raises(Forbidden, match="no permission to list pytorchjobs"):
        KubernetesBackend().entries()


def test_a_preparation_without_rights_on_roles_names_both_ways(forbidding: ApiServer) -> None:
    jobs = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "create", "patch", "delete"]}
    forbidding.rules = [*documented("kubernetes.md"), jobs]
    with pytest.raises(Forbidden, match=r"prepare_account.*suspend: true"):
        KubernetesBackend().submit(bundle("kubernetes.prepare=true"))
    assert (
        KubernetesBackend().submit(bundle("kubernetes.prepare=true", "kubernetes.suspend=true")).id
        == "default/qwen-7b-chat"
    )


def test_an_expired_token_is_one_line_without_kubectls_log(forbidding: ApiServer) -> None:
    forbidding.expired = True
    for call in (lambda: KubernetesBackend().submit(bundle()), KubernetesBackend().entries):
        with pytest.raises(EnvironmentFault, match="rejects your credentials") as error:
            call()
        assert not re.search(r"\.go:\d+|[EW]\d{4} ", str(error.value))


@pytest.mark.parametrize(
    ("sets", "field"),
    [
        (["kubernetes.queue=kueue:team", "kubernetes.prepare=true"], "kubernetes.queue: there is no Kueue LocalQueue"),
        (["kubernetes.queue=volcano"], "kubernetes.queue: the cluster has no Volcano"),
        (["kubernetes.priority_class=high"], "kubernetes.priority_class: there is no priority class 'high'"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_made(forbidding: ApiServer, sets: list[str], field: str) -> None:
    before = [*forbidding.made]
    with pytest.raises(ClusterRefused, match=re.escape(field)):
        KubernetesBackend().submit(bundle(*sets))
    assert forbidding.made == before
