"""The kubectl backend against a kubectl that answers from recorded JSON."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.job import load_job
from qwen_job.launch.backend import Entry
from qwen_job.launch.find import find
from qwen_job.launch.kubernetes.backend import KINDS, KubernetesBackend
from qwen_job.launch.kubernetes.progress import progress_of_log
from qwen_job.launch.kubernetes.reasons import pod_reason
from qwen_job.launch.kubernetes.state import pods_wanted
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource
from qwen_job.run.progress import Progress
from qwen_job.train.runlog import progress_text
from tests.support.kubectl import Recorded, items

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
DRY = "apply --server-side --force-conflicts --field-manager=qwen-job --dry-run=server"


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Recorded(tmp_path)


def bundle(*sets: str) -> Bundle:
    return render(make_plan(load_job([JOB], sets=sets)), "kubernetes")


def job(name: str = "a", condition: str = "Running", message: str = "", **metadata: Any) -> dict[str, Any]:
    return {
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "ml", "creationTimestamp": "2026-11-01T00:00:00Z", **metadata},
        "status": {"conditions": [{"type": condition, "status": "True", "message": message}]},
    }


def pod(name: str = "a", phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": f"{name}-worker-0", "namespace": "ml", "labels": {"app.kubernetes.io/instance": name}},
        "spec": {"nodeName": "gpu1"} if phase == "Running" else {},
        "status": {"phase": phase, **status},
    }


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[condition])


def waiting(reason: str) -> dict[str, Any]:
    return pod(phase="Pending", containerStatuses=[{"state": {"waiting": {"reason": reason, "message": "m"}}}])


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return pod(phase="Failed", containerStatuses=[{"state": {"terminated": {"exitCode": code, "reason": reason}}}])


def only(kubectl: Recorded, this: dict[str, Any], *pods: dict[str, Any]) -> Entry:
    unknown = (1, "", 'error: the server doesn\'t have a resource type "x"')
    kubectl.answers(
        ("get pods", items(*pods)),
        ("get pytorchjobs", items(this)),
        ("get trainjobs", unknown),
        ("get jobsets", unknown),
    )
    (entry,) = KubernetesBackend().entries()
    return entry


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


def test_a_running_job(kubectl: Recorded) -> None:
    entry = only(kubectl, job(annotations={"qwen-job/output": "/shared/run"}), pod())
    wanted = Entry("kubernetes", "ml/a", "a", "running", "", "/shared/run", "a-worker-0", "gpu1", "1/1", 0)
    assert entry == wanted


@pytest.mark.parametrize(
    ("pods", "state", "reason"),
    [
        (unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "pending", "nvidia.com/gpu free"),
        (unscheduled('persistentvolumeclaim "shared" not found'), "pending", "claim 'shared' does not exist"),
        (unscheduled("2 node(s) didn't match Pod's node affinity/selector"), "pending", "kubernetes.gpu_products"),
        (unscheduled("1 node(s) had untolerated taint {spot: true}"), "pending", "tainted (spot)"),
        (waiting("ImagePullBackOff"), "pending", "the image cannot be pulled"),
        (waiting("CreateContainerConfigError"), "pending", "a secret or a ConfigMap is missing"),
        (waiting("ContainerCreating"), "pending", ""),
        (ended(137, "OOMKilled"), "failed", "killed for memory"),
        (ended(3), "failed", "exit code 3 (final"),
        (ended(160), "pending", "exit code 160 (retried)"),
        (pod(phase="Failed", reason="Evicted", message="low on disk"), "failed", "Evicted: low on disk"),
    ],
)  # fmt: skip
def test_why_a_job_does_not_run_is_one_line(kubectl: Recorded, pods: Any, state: str, reason: str) -> None:
    condition = {"pending": "Created", "failed": "Failed"}[state]
    entry = only(kubectl, job(condition=condition), pods)
    assert entry.state == state and reason in entry.reason and "\n" not in entry.reason


def test_a_queue_is_waited_for(kubectl: Recorded) -> None:
    this = job(condition="Suspended", labels={"kueue.x-k8s.io/queue-name": "q"})
    assert only(kubectl, this, preparing("Succeeded")).reason == "waits for its queue to admit it"
    assert only(kubectl, this).state == "pending"


def test_a_pod_that_runs_has_no_reason() -> None:
    assert pod_reason(pod()) == ""


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


BEAT = {"attempt": 2, "state": "training", "step": 7, "total_steps": 50, "loss": 1.5, "eta_seconds": 60.0, "time": 1.0}


def test_a_running_job_s_own_pod_tells_its_progress(kubectl: Recorded) -> None:
    kubectl.answers(("exec --namespace ml a-worker-0 -- cat /shared/run/heartbeat", BEAT))
    (found,) = KubernetesBackend().progress(
        [Entry("kubernetes", "ml/a", "a", "running", run="/shared/run", log="a-worker-0")], seconds=9
    )
    assert (found.step, found.total_steps, found.loss, found.eta_seconds) == (7, 50, 1.5, 60.0)
    assert found.age_seconds is not None and found.age_seconds > 1e9


@pytest.mark.parametrize("beat", ["", "{", "[1]"])
def test_where_exec_is_forbidden_the_log_tells_it(kubectl: Recorded, beat: str) -> None:
    line = "step 120/500 · loss 1.2345 · 34,289 tokens/s · MFU 45.2% · 2 h 5 min left"
    forbidden = (1, "", 'User "u" cannot create resource "pods/exec" in API group ""')
    kubectl.answers(
        ("exec", (0, beat, "") if beat else forbidden),
        ("logs --namespace ml a-worker-0 --tail=50", (0, f"step 119/500\n{line}\nqwen-job: saved step 120\n", "")),
    )
    (found,) = KubernetesBackend().progress(
        [Entry("kubernetes", "ml/a", "a", "running", run="/r", log="a-worker-0")], seconds=9
    )
    wanted = Progress("training", 120, 500, 1.2345, 34289.0, 7500.0)
    assert found == wanted


def test_the_log_s_line_is_the_trainer_s_own() -> None:
    values = {"loss": 0.5, "tokens_per_second": 1234.4, "mfu": 0.41, "step_seconds": 1}
    assert progress_of_log(progress_text(3, 9, values, 3725)) == Progress("training", 3, 9, 0.5, 1234.0, 3720.0)
    assert progress_of_log(progress_text(3, None, {}, None)) == Progress("training", 3)
    assert progress_of_log("nothing\n") == Progress()


def test_a_pod_that_does_not_answer_costs_no_more_than_its_time(kubectl: Recorded) -> None:
    (kubectl.folder / "kubectl").write_text("#!/bin/sh\nexec sleep 30\n")
    begin = time.monotonic()
    entry = Entry("kubernetes", "ml/a", "a", "running", run="/r", log="a-worker-0")
    assert KubernetesBackend().progress([entry] * 4, seconds=0.3) == [Progress()] * 4
    assert time.monotonic() - begin < 5


def asked_for(pods: int, condition: str = "Created", **more: Any) -> dict[str, Any]:
    """A job that asks for so many pods."""
    return {**job(condition=condition, **more), "spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": pods}}}}


def event(said: str, thing: str = "a", when: str = "2026-02-01", **more: Any) -> dict[str, Any]:
    return {"message": said, "lastTimestamp": when, "involvedObject": {"name": thing}, **more}


FORBIDS = 'Error creating: pods "a-worker-1" is forbidden: '


@pytest.mark.parametrize(
    ("thing", "said", "meant"),
    [
        ("a", f'{FORBIDS}violates PodSecurity "restricted:latest": x', "only pods of level restricted"),
        ("a-prepare", f"{FORBIDS}exceeded quota: q", "over the namespace's quota"),
        ("a-node-0", f"{FORBIDS}failed quota: q: must specify limits.memory for: pytorch", "requires limits.memory"),
        (
            "a",
            f"{FORBIDS}no PriorityClass with name high was found",
            "kubernetes.priority_class: there is no class 'high'",
        ),
        ("a", f'{FORBIDS}error looking up service account ml/s: serviceaccount "s" not found', "no account 's'"),
        ("a", f"{FORBIDS}maximum memory usage per Container is 64Gi, but limit is 900Gi", "kubernetes.memory: outside"),
        ("a", 'admission webhook "kueue" denied the request: no', "admission webhook kueue"),
        ("a-worker-0", 'MountVolume.SetUp failed for volume "s" : secret "hub" not found', "no secret 'hub'"),
        (
            "a-worker-0",
            'MountVolume.MountDevice failed for volume "nas" : timeout',
            "the volume 'nas' cannot be mounted",
        ),
        ("a-node-0", "something new", "something new"),
    ],
)
@pytest.mark.parametrize("there", [0, 1])
def test_a_job_that_lacks_pods_says_why(
    kubectl: Recorded,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    thing: str,
    said: str,
    meant: str,
    there: int,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    events = [event("old", when="2026-01-01"), event(said, thing), event("of another", "a-b-worker-0", "2026-03-01")]
    kubectl.answers(
        ("get events --namespace ml --field-selector=type=Warning", items(*events)),
        ("get pods", items(*[pod()] * there)), ("get pytorchjobs", items(asked_for(2, "Running"))), ("get", items()),
    )  # fmt: skip
    (found,) = find("a", "kubernetes")
    assert found.entry.state == "pending" and meant in found.entry.reason and "of another" not in found.entry.reason
    assert found.entry.pods == ("1/2" if there else "")


def test_pods_are_counted_against_what_the_job_asks_for(kubectl: Recorded) -> None:
    entry = only(kubectl, asked_for(3, "Running"), pod())
    assert (entry.state, entry.pods, entry.reason) == ("pending", "1/3", "2 of 3 pods missing")
    assert only(kubectl, asked_for(1, "Running"), pod()).state == "running"
    assert only(kubectl, asked_for(1, "Succeeded")).state == "completed"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": 3}}}, 4),
        ({"trainer": {"numNodes": 5}}, 5),
        ({"replicatedJobs": [{"replicas": 1, "template": {"spec": {"parallelism": 6}}}]}, 6),
        ({}, 0),
    ],
)
def test_every_kind_tells_how_many_pods_it_wants(spec: dict[str, Any], wanted: int) -> None:
    assert pods_wanted({"spec": spec}) == wanted


def test_a_pending_pod_is_not_said_to_run(kubectl: Recorded) -> None:
    entry = only(kubectl, asked_for(1, "Running", message="PyTorchJob a is running."), pod(phase="Pending"))
    assert (entry.state, entry.reason) == ("pending", "")


@pytest.mark.parametrize(
    ("workload", "meant"),
    [
        (None, "is Kueue's integration"),
        ("LocalQueue team doesn't exist", "kubernetes.queue: LocalQueue 'team' does not exist"),
        (
            "couldn't assign flavors: insufficient quota for nvidia.com/gpu in flavor a",
            "not enough nvidia.com/gpu free",
        ),
        ("something new", "(something new)"),
    ],
)
def test_kueue_says_why_a_job_waits(
    kubectl: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workload: str | None, meant: str
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    owner = {"kind": "PyTorchJob", "name": "a"}
    condition = {"type": "QuotaReserved", "status": "False", "message": workload}
    made = {"metadata": {"name": "w", "ownerReferences": [owner]}, "status": {"conditions": [condition]}}
    this = job(condition="Suspended", labels={"kueue.x-k8s.io/queue-name": "q"})
    kubectl.answers(
        ("get workloads", items(*([made] if workload else []))), ("get pytorchjobs", items(this)), ("get", items())
    )  # fmt: skip
    (found,) = find("a", "kubernetes")
    assert found.entry.state == "pending" and meant in found.entry.reason


def killed_for_memory(limit: str = "", **more: Any) -> dict[str, Any]:
    limits = {"limits": {"memory": limit}} if limit else {}
    this = ended(137, "OOMKilled")
    this["status"]["containerStatuses"][0] |= {"name": "pytorch", **more}
    return {**this, "spec": {"containers": [{"name": "pytorch", "resources": limits}]}}


def test_a_kill_for_memory_is_named_with_the_limit_and_the_plan(kubectl: Recorded) -> None:
    this = job(condition="Failed", annotations={"qwen-job/needs-memory": "57Gi"})
    reason = only(kubectl, this, ended(8), killed_for_memory("40Gi")).reason
    assert "OOMKilled" in reason and "its limit is 40Gi, the plan estimates 57Gi" in reason
    assert "it has no limit" in only(kubectl, this, killed_for_memory()).reason
    again = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"reason": "OOMKilled"}}}
    assert "OOMKilled" in pod_reason(killed_for_memory(**again))


def test_a_killed_pod_that_is_gone_is_remembered_by_its_operator(
    kubectl: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    exits = [
        event(f"Pod: ml.{name} exited with code {code}") for name, code in (("a-worker-1", 137), ("a-worker-0", 8))
    ]
    kubectl.answers(
        ("get events --namespace ml --field-selector=reason=ExitedWithCode", items(*exits)),
        ("get pods", items(ended(8))), ("get pytorchjobs", items(job(condition="Failed"))), ("get", items()),
    )  # fmt: skip
    (found,) = find("a", "kubernetes")
    assert found.entry.reason.startswith("a-worker-1: killed (exit code 137), most likely for memory")
    assert "exit code 8" in found.entry.reason


def test_the_last_line_of_a_failed_pod_is_shown() -> None:
    this = ended(3)
    this["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "a\nqwen-job: data.jsonl: no such file\n"
    assert pod_reason(this).endswith(": qwen-job: data.jsonl: no such file")


def test_a_scheduler_that_is_not_there_is_named() -> None:
    this = pod(phase="Pending")
    this["spec"] = {"schedulerName": "volcano"}
    assert "the scheduler 'volcano' has not seen the pod" in pod_reason(this)


def test_a_job_without_warnings_keeps_its_reason(
    kubectl: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    forbidden = (1, "", 'User "u" cannot list resource "events" in API group ""')
    kubectl.answers(("get events", forbidden), ("get pytorchjobs", items(job(condition="Suspended"))), ("get", items()))
    (found,) = find(None, "kubernetes")
    assert found.entry.reason == "suspended"


def preparing(phase: str = "Running", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "a-prepare-x", "namespace": "ml", "labels": {"app.kubernetes.io/instance": "a-prepare"}},
        "status": {"phase": phase, **status},
    }


@pytest.mark.parametrize(
    ("its_pod", "state", "reason"),
    [
        (preparing(), "pending", "a-prepare-x: fetching the model"),
        (preparing("Succeeded"), "suspended", "model and data are ready"),
        (preparing("Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 4}}}]), "failed", "exit code 4"),
        (
            preparing("Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 137}}}]),
            "pending",
            "retried",
        ),
    ],
)
def test_a_job_that_is_prepared_says_so(kubectl: Recorded, its_pod: dict[str, Any], state: str, reason: str) -> None:
    entry = only(kubectl, job(condition="Suspended"), its_pod)
    assert entry.state == state and reason in entry.reason and entry.log == "a-prepare-x"


def test_a_cancel_needs_no_right_to_roles(kubectl: Recorded) -> None:
    forbidden = (1, "", 'User "u" cannot list resource "roles" in API group "rbac.authorization.k8s.io"')
    kubectl.answers(
        *((f"delete {kind}", forbidden) for kind in ("rolebindings", "roles", "serviceaccounts")), ("delete", "")
    )
    KubernetesBackend().cancel(Entry("kubernetes", "ml/a", "a", "running"))
    assert kubectl.calls[0].startswith("delete pytorchjobs")


def test_a_thousand_jobs_in_three_seconds(kubectl: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names = [f"run-{number}" for number in range(1000)]
    jobs = [job(name, annotations={"qwen-job/output": f"/shared/{name}"}) for name in names]
    kubectl.answers(
        ("get pods", items(*map(pod, names))), ("get pytorchjobs", items(*jobs)), ("get", items()), ("exec", BEAT)
    )  # fmt: skip
    begin = time.monotonic()
    found = find(None, "kubernetes")
    assert time.monotonic() - begin < 3
    assert {item.entry.restarts for item in found} == {0, 2}
    assert len(found) == 1000 and 0 < sum(item.progress.step == 7 for item in found) <= 16
