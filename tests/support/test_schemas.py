"""The judges of manifests take good objects and refuse every kind of bad one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_job.resources import resource
from tests.support import optional, pods, schemas
from tests.support.schemas import compare, crd_folder, strict, validate

POD: dict[str, Any] = {
    "containers": [
        {
            "name": "pytorch",
            "image": "registry.example/qwen-job@sha256:" + "0" * 64,
            "command": ["torchrun", "-m", "qwen_job.train"],
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
            "resources": {"limits": {"nvidia.com/gpu": 8, "memory": "200Gi"}, "requests": {"nvidia.com/gpu": 8}},
            "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        }
    ],
    "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}}],
}
JOB: dict[str, Any] = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "demo", "labels": {"app.kubernetes.io/name": "qwen-job"}},
    "spec": {
        "nprocPerNode": "8",
        "runPolicy": {"cleanPodPolicy": "Running", "backoffLimit": 3},
        "elasticPolicy": {"minReplicas": 2, "maxReplicas": 2, "rdzvBackend": "c10d", "maxRestarts": 3},
        "pytorchReplicaSpecs": {"Worker": {"replicas": 2, "restartPolicy": "ExitCode", "template": {"spec": POD}}},
    },
}
TRAIN_JOB: dict[str, Any] = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": "demo"},
    "spec": {
        "runtimeRef": {"name": "torch-distributed"},
        "trainer": {
            "numNodes": 2,
            "image": "registry.example/qwen-job:1",
            "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}},
            "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
        },
    },
}
CONFIG_MAP: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "demo"},
    "data": {"train.yaml": "seed: 1"},
}
WORKER = ("spec", "pytorchReplicaSpecs", "Worker")
SPEC = (*WORKER, "template", "spec")
CONTAINER = (*SPEC, "containers", 0)


def changed(thing: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """Return a copy with another value, or without it where the value is ``...``."""
    done = copy.deepcopy(thing)
    inner: Any = done
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return done


@pytest.mark.parametrize("thing", [JOB, TRAIN_JOB, CONFIG_MAP], ids=lambda thing: str(thing["kind"]))
def test_a_good_object_passes(thing: dict[str, Any]) -> None:
    assert validate([thing]) == []


def test_the_published_crds_are_there() -> None:
    if crd_folder() is None:
        optional.skip("crds", "no folder of published CRDs: set QWEN_JOB_CRDS")
    kinds = {kind for _, kind in schemas._crds()}
    assert {"PyTorchJob", "TrainJob", "JobSet"} <= kinds


BAD_JOBS: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "integer nprocPerNode": (("spec", "nprocPerNode"), 8, "nprocPerNode"),
    "misspelt field": (("spec", "runPolicyy"), {}, "runPolicyy"),
    "misspelt field, deep": ((*CONTAINER, "imagePullPolcy"), "Always", "imagePullPolcy"),
    "no container named pytorch": ((*CONTAINER, "name"), "trainer", "none is named pytorch"),
    "bad quantity": ((*CONTAINER, "resources", "limits", "memory"), "200 Gi", "no quantity"),
    "bad size": ((*SPEC, "volumes", 0, "emptyDir", "sizeLimit"), "64GB", "no quantity"),
    "restartPolicy": ((*WORKER, "restartPolicy"), "Sometimes", "restartPolicy"),
    "pod restartPolicy": ((*SPEC, "restartPolicy"), "ExitCode", "spec.restartPolicy"),
    "cleanPodPolicy": (("spec", "runPolicy", "cleanPodPolicy"), "running", "cleanPodPolicy"),
    "integer env value": ((*CONTAINER, "env", 0, "value"), 1, "NCCL_DEBUG"),
    "env name": ((*CONTAINER, "env", 0, "name"), "A B", "not a valid name"),
    "port": ((*CONTAINER, "ports"), [{"containerPort": 70000}], "no port"),
    "replicas": ((*WORKER, "replicas"), 0, "replicas"),
    "name": (("metadata", "name"), "Demo_1", "metadata.name"),
    "long name": (("metadata", "name"), "d" * 60, "longer than 63"),
    "label": (("metadata", "labels", "app.kubernetes.io/name"), "a b", "not a valid label"),
    "fractional GPU": ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "0.5", "nvidia.com/gpu"),
    "GPU requests": ((*CONTAINER, "resources", "requests", "nvidia.com/gpu"), 4, "differ"),
    "mount of nothing": ((*CONTAINER, "volumeMounts", 0, "name"), "data", "no volume"),
    "relative mount": ((*CONTAINER, "volumeMounts", 0, "mountPath"), "shm", "absolute"),
    "image": ((*CONTAINER, "image"), "", "no image"),
    "no containers": ((*SPEC, "containers"), [], "pytorch"),
    "two Masters": (("spec", "pytorchReplicaSpecs", "Master"), {"replicas": 2}, "one Master"),
    "wrong type": ((*CONTAINER, "command"), "torchrun", "command"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_a_bad_job_is_refused(case: str) -> None:
    place, value, said = BAD_JOBS[case]
    problems = validate([changed(JOB, place, value)])
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("spec", "trainer", "numNodes"), 0, "numNodes"),
        (("spec", "trainer", "numProcs"), 8, "numProcs"),
        (("spec", "trainer", "env", 0, "name"), "PET_NNODES", "trainer's own"),
        (("spec", "trainer", "resourcesPerNode", "limits", "nvidia.com/gpu"), "eight", "no quantity"),
        (("spec", "runtimeRef"), ..., "runtimeRef"),
    ],
)
def test_a_bad_train_job_is_refused(place: tuple[str | int, ...], value: Any, said: str) -> None:
    problems = validate([changed(TRAIN_JOB, place, value)])
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("data", "train.yaml"), 1, "data.train.yaml"),
        (("dta",), {}, "dta"),
        (("apiVersion",), "v9", "schema"),
        (("metadata", "name"), ..., "metadata.name"),
        (("metadata", "annotations"), {"a": 1}, "annotation"),
    ],
)
def test_a_bad_config_map_is_refused(place: tuple[str | int, ...], value: Any, said: str) -> None:
    problems = validate([changed(CONFIG_MAP, place, value)])
    assert any(said in problem for problem in problems), problems


def test_a_field_that_only_newer_releases_know_is_refused() -> None:
    # Pod-level resources came with 1.32.
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {**POD, "resources": {}}}
    assert any("resources" in problem for problem in validate([pod]))


def test_the_oldest_release_is_the_chart_s() -> None:
    chart = yaml.safe_load(resource("charts", "qwen-job", "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={schemas.KUBERNETES[0]}.0-0"


def test_claims_and_pods_are_checked_as_well() -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1TB"}}},
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {**POD, "dnsPolicy": "Any"}}
    problems = validate([claim, pod, CONFIG_MAP, CONFIG_MAP])
    assert ["quantity" in problems[0], "dnsPolicy" in problems[1], "twice" in problems[2]] == [True] * 3
    assert validate([{"kind": None}])[0].startswith("not a Kubernetes object")


def test_without_the_crds_the_sdk_still_finds_unknown_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QWEN_JOB_CRDS", str(tmp_path / "none"))
    cached: Callable[[], Any] = schemas._crds.__wrapped__
    monkeypatch.setattr(schemas, "_crds", cached)
    assert crd_folder() is None
    assert validate([JOB]) == []
    assert validate([changed(JOB, ("spec", "nproc"), "8")]) == ["PyTorchJob/demo: spec.nproc: unknown field"]


def test_strict_refuses_only_what_a_server_would_drop() -> None:
    schema = strict({"properties": {"free": {"x-kubernetes-preserve-unknown-fields": True, "properties": {}}}})
    assert schema["additionalProperties"] is False
    assert "additionalProperties" not in schema["properties"]["free"]


def test_compare_names_the_place() -> None:
    assert list(compare({"a": [{"b": 1}]}, {"a": [{"b": "1"}]})) == ["a.0.b: 1 is read as '1'"]


def test_every_pod_template_is_found() -> None:
    assert [place for place, _ in pods.templates(JOB)] == ["spec.pytorchReplicaSpecs.Worker.template"]
