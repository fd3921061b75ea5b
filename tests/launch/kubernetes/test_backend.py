"""The kubectl backend's submit, cancel and logs, against a kubectl that answers from recorded JSON."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.job import load_job
from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.backend import KINDS, KubernetesBackend
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource
from tests.support.kubectl import Recorded, items
from tests.support.kubernetes_objects import job

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
DRY = "apply --server-side --force-conflicts --field-manager=qwen-job --dry-run=server"


def bundle(*sets: str) -> Bundle:
    return render(make_plan(load_job([JOB], sets=sets)), "kubernetes")


def test_submit_asks_first_and_gives_the_id(kubectl: Recorded) -> None:
    kubectl.answers(("get", ""), (DRY, ""), ("apply", items({"kind": "ConfigMap"}, job("qwen"))))
    assert KubernetesBackend().submit(bundle()).id == "ml/qwen"
    assert [call.split()[0] for call in kubectl.calls] == [*["get"] * 3, *["delete"] * 2, "get", *["apply"] * 2]
    assert "--dry-run=server" in kubectl.calls[-2]


def test_a_train_job_is_not_asked_for_before_its_runtime_is_there(kubectl: Recorded) -> None:
    made = {**job("qwen"), "kind": "TrainJob"}
    kubectl.answers(("get", ""), (DRY, ""), ("apply", items({"kind": "TrainingRuntime"}, made)))
    assert KubernetesBackend().submit(bundle("kubernetes.kind=trainjob")).id == "ml/qwen"
    dry, real = (kubectl.folder / "stdin").read_text().split("=== next\n")[:2]
    assert ("TrainingRuntime" in dry, "kind: TrainJob" in dry, '"TrainJob"' in dry) == (True, False, False)
    assert "kind: TrainJob" in real


@pytest.mark.parametrize("namespace", ["", "ml"])
def test_a_claim_that_is_not_there_is_named(kubectl: Recorded, namespace: str) -> None:
    volumes = "kubernetes.volumes=[{name: a, mount_path: /shared, pvc: mine}, {name: b, mount_path: /b, size: 1Gi}]"
    sets = [volumes, *([f"kubernetes.namespace={namespace}"] if namespace else [])]
    kubectl.answers(("get", ""))
    with pytest.raises(ClusterRefused, match=r"kubernetes\.volumes: there is no claim 'mine' in the namespace"):
        KubernetesBackend().submit(bundle(*sets))


def test_who_may_not_look_at_claims_or_clear_away_may_submit(kubectl: Recorded) -> None:
    def forbidden(verb: str, what: str) -> tuple[int, str, str]:
        return 1, "", f'User "u" cannot {verb} resource "{what}" in API group ""'

    made = (0, json.dumps(items(job("qwen"))), "")
    answers = [
        ("get persistentvolumeclaims", forbidden("get", "persistentvolumeclaims")),
        ("get trainjobs", forbidden("get", "x")),
        ("get", ""), ("delete", forbidden("deletecollection", "configmaps")), ("apply", made),
    ]  # fmt: skip
    kubectl.answers(*answers)
    assert (
        KubernetesBackend().submit(bundle("kubernetes.volumes=[{name: a, mount_path: /shared, pvc: x}]")).id
        == "ml/qwen"
    )
    kubectl.answers(("get pytorchjobs", forbidden("get", "pytorchjobs")), ("get", ""))
    with pytest.raises(ClusterRefused, match="no permission to get pytorchjobs"):
        KubernetesBackend().submit(bundle())


def test_a_job_that_is_there_is_not_applied_over(kubectl: Recorded) -> None:
    kubectl.answers(("get", job("qwen-7b-chat", "Failed")))
    with pytest.raises(ClusterRefused, match=r"'qwen-7b-chat' already exists \(failed\)"):
        KubernetesBackend().submit(bundle())


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (
            'resource mapping not found: no matches for kind "PyTorchJob" in version "kubeflow.org/v1"',
            "kubernetes.kind",
        ),
        ('Error from server (NotFound): namespaces "x" not found', "there is no namespace 'x'"),
        ('User "u" cannot create resource "pytorchjobs" in API group', "no permission to create pytorchjobs"),
        (
            "ConfigMap is invalid: data: Forbidden: field is immutable when `immutable` is set",
            "already exists with other settings",
        ),
        ('strict decoding error: unknown field "spec.x"', "the server has no field spec.x"),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath',
            "only pods of level restricted",
        ),
        (
            'PersistentVolumeClaim "x" is invalid: spec: Forbidden: spec is immutable after creation',
            "kubernetes.volumes",
        ),
        ("something else", "Kubernetes rejects it: something else"),
    ],
)
def test_a_refusal_names_the_field(kubectl: Recorded, said: str, meant: str) -> None:
    kubectl.answers(("get", ""), ("apply", (1, "", said)))
    with pytest.raises(ClusterRefused, match=meant):
        KubernetesBackend().submit(bundle())


def test_no_cluster_and_no_kubectl_are_told(kubectl: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl.answers(("get", (1, "", "The connection to the server localhost:8080 was refused")))
    with pytest.raises(EnvironmentFault, match="cannot reach the cluster"):
        KubernetesBackend().entries()
    monkeypatch.setenv("PATH", "")
    assert not KubernetesBackend().available()
    with pytest.raises(EnvironmentFault, match="not on this machine"):
        KubernetesBackend().entries()


def test_one_namespace_where_all_are_forbidden(kubectl: Recorded) -> None:
    forbidden = (1, "", 'User "u" cannot list resource "pods" in API group "" at the cluster scope')
    names = [f"get {kind}" for kind in ("pods", *KINDS.values())]
    kubectl.answers(*((f"{name} --all-namespaces", forbidden) for name in names), *((name, items()) for name in names))
    assert KubernetesBackend().entries() == []


def test_logs_and_cancel(kubectl: Recorded, capfd: pytest.CaptureFixture[str]) -> None:
    kubectl.answers(("logs --namespace ml --follow a-worker-0", (0, "step 1\n", "")), ("delete", ""))
    entry = Entry("kubernetes", "ml/a", "a", "running", log="a-worker-0")
    assert KubernetesBackend().logs(entry, follow=True) == 0
    assert capfd.readouterr().out == "step 1\n"
    KubernetesBackend().cancel(entry)
    deleted = [call.split()[1] for call in kubectl.calls if call.startswith("delete")]
    assert "pytorchjobs.kubeflow.org" in deleted and "persistentvolumeclaim" not in deleted
    with pytest.raises(EnvironmentFault, match="has no pod"):
        KubernetesBackend().logs(Entry("kubernetes", "ml/a", "a", "pending", "no GPU"), follow=False)


def test_a_cancel_needs_no_right_to_roles(kubectl: Recorded) -> None:
    forbidden = (1, "", 'User "u" cannot list resource "roles" in API group "rbac.authorization.k8s.io"')
    kubectl.answers(
        *((f"delete {kind}", forbidden) for kind in ("rolebindings", "roles", "serviceaccounts")), ("delete", "")
    )
    KubernetesBackend().cancel(Entry("kubernetes", "ml/a", "a", "running"))
    assert kubectl.calls[0].startswith("delete pytorchjobs")


def test_a_kubectl_without_a_kubeconfig_is_asked_only_by_name(
    kubectl: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG")
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(kubectl.folder))
    monkeypatch.setenv("PATH", str(kubectl.folder))
    log = 'E1128 00:50:15.123456 1 memcache.go:265] "Unhandled Error" err="dial tcp: connection refused"\n'
    kubectl.answers(("", (1, "", log * 5)))
    result = CliRunner().invoke(cli, ["status"])
    assert (result.exit_code, result.stderr) == (0, "no jobs in the queue; use --all to show earlier ones\n")
    assert not (kubectl.folder / "calls").exists()
    asked = CliRunner().invoke(cli, ["status", "-t", "kubernetes"])
    assert isinstance(asked.exception, EnvironmentFault) and str(asked.exception).count("Unhandled") == 1
