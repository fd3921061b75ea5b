"""A job's state, from its conditions and pods."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.launch.backend import Entry
from qwen_job.launch.kubernetes.state import pods_wanted
from tests.support.kubectl import Recorded
from tests.support.kubernetes_objects import asked_for, evaluating, job, only, pod, preparing


def test_a_running_job(kubectl: Recorded) -> None:
    entry = only(kubectl, job(annotations={"qwen-job/output": "/shared/run"}), pod())
    wanted = Entry("kubernetes", "ml/a", "a", "running", "", "/shared/run", "a-worker-0", "gpu1", "1/1", 0)
    assert entry == wanted


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
    ("its_pod", "reason"),
    [
        (evaluating(), "a-evaluate-x: evaluating"),
        (evaluating("Pending"), "waits to evaluate: a-evaluate-x"),
        (evaluating("Succeeded"), ""),
        (
            evaluating("Failed", containerStatuses=[{"state": {"terminated": {"exitCode": 4}}}]),
            "the evaluation failed: a-evaluate-x: ended with exit code 4",
        ),
    ],
)
def test_a_complete_training_says_how_far_its_evaluation_is(
    kubectl: Recorded, its_pod: dict[str, Any], reason: str
) -> None:
    entry = only(kubectl, job(condition="Succeeded"), its_pod)
    assert entry.state == "completed" and entry.reason.startswith(reason) and bool(entry.reason) == bool(reason)


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
