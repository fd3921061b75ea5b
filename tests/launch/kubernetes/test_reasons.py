"""Why a job waits or failed, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qwen_job.launch.find import find
from qwen_job.launch.kubernetes.reasons import pod_reason
from tests.support.kubectl import Recorded, items
from tests.support.kubernetes_objects import asked_for, ended, event, job, only, pod, preparing, unscheduled, waiting


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
