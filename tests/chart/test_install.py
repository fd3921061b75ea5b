"""A real helm installs, upgrades and removes a release on a server that remembers what it was asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen_job.resources import resource
from tests.support.apiserver import ApiServer
from tests.support.helm import WHEELS, run_helm

CHART = resource("charts", "qwen-job")


@pytest.fixture
def server() -> Iterator[ApiServer]:
    running = ApiServer()
    yield running
    running.close()


def helm(server: ApiServer, version: str, command: str, *arguments: str) -> str:
    words = [command, "my-run", *([] if command == "uninstall" else [CHART, "--disable-openapi-validation"])]
    return run_helm(*words, "--kube-apiserver", server.url, *arguments, version=version)


def kinds(server: ApiServer) -> list[str]:
    return [name.partition("/")[0] for name in server.made if not name.startswith("Secret/")]


@pytest.mark.parametrize("version", WHEELS)
def test_everything_is_made_in_an_order_that_operators_take(server: ApiServer, version: str) -> None:
    sets = "kubernetes.kind=trainjob,kubernetes.prepare=true,kubernetes.network_policy=true"
    said = helm(server, version, "install", "--set", sets)
    assert "STATUS: deployed" in said and "delete trainingruntime my-run" in said
    made = kinds(server)
    assert made.index("TrainingRuntime") < made.index("TrainJob")
    assert max(map(made.index, ("ConfigMap", "RoleBinding", "ServiceAccount"))) < made.index("Job")
    assert server.find("TrainJob")[0]["spec"]["suspend"] is True


@pytest.mark.parametrize("version", WHEELS)
def test_an_upgrade_leaves_a_running_job_alone_or_is_refused(server: ApiServer, version: str) -> None:
    helm(server, version, "install", "--set", "kubernetes.prepare=true")
    (job,) = server.find("PyTorchJob")
    job["spec"]["runPolicy"]["suspend"] = False  # as the preparation does
    before = [*server.made]
    with pytest.raises(AssertionError, match="exists and would compute something else"):
        helm(server, version, "upgrade", "--set", "kubernetes.prepare=true,cluster.nodes=2")
    assert server.made == before and server.find("PyTorchJob") == [job]
    helm(server, version, "upgrade", "--set", "kubernetes.prepare=true,kubernetes.ttl_after_finished=60")
    (now,) = server.find("PyTorchJob")
    assert now["spec"]["runPolicy"]["ttlSecondsAfterFinished"] == 60 and now["spec"]["runPolicy"]["suspend"] is False


@pytest.mark.parametrize("version", WHEELS)
def test_a_release_goes_and_its_storage_stays(server: ApiServer, version: str) -> None:
    volumes = (
        "kubernetes.volumes[0].name=shared,kubernetes.volumes[0].mount_path=/shared,kubernetes.volumes[0].size=1Ti"
    )
    helm(server, version, "install", "--set", f"{volumes},kubernetes.kind=jobset,kubernetes.prepare=true")
    helm(server, version, "uninstall")
    assert {thing["kind"] for thing in server.objects.values()} == {"PersistentVolumeClaim"}
