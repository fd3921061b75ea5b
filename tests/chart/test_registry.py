"""The packaged chart in a real OCI registry on this machine: pushed, rendered, installed, used by other charts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qwen_job import __version__
from qwen_job.resources import resource
from tests.support.apiserver import ApiServer
from tests.support.helm import WHEELS, run_helm
from tests.support.registry import registry
from tests.support.schemas import load, validate

CHART = resource("charts", "qwen-job")
PLAIN = "--plain-http"


@pytest.fixture(scope="module", params=WHEELS)
def helm(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def charts(helm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of the folder of charts that helm pushed ours to."""
    folder = tmp_path_factory.mktemp("registry")
    with registry(folder) as host:
        address = f"oci://{host}/charts"
        run_helm("package", CHART, "-d", folder, version=helm)
        run_helm("push", folder / f"qwen-job-{__version__}.tgz", address, PLAIN, version=helm)
        yield address


@pytest.fixture
def parent(helm: str, charts: str, tmp_path: Path) -> Path:
    """Return a chart with two jobs, the second under an alias."""
    ours = {"name": "qwen-job", "version": __version__, "repository": charts}
    second = {**ours, "alias": "second", "condition": "second.enabled"}
    chart = {"apiVersion": "v2", "name": "team", "version": "1.0.0"}
    chart |= {"dependencies": [{**ours, "condition": "training.enabled"}, second]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    run_helm("dependency", "update", tmp_path, PLAIN, version=helm)
    return tmp_path


def test_a_registry_has_what_the_checkout_has(helm: str, charts: str) -> None:
    address = f"{charts}/qwen-job"
    shown = yaml.safe_load(run_helm("show", "chart", address, PLAIN, version=helm))
    assert shown == yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert "| `kubernetes.shm_size` |" in run_helm("show", "readme", address, PLAIN, version=helm)
    pulled = run_helm("template", "my-run", address, "--version", __version__, PLAIN, version=helm)
    assert load(pulled) == load(run_helm("template", "my-run", CHART, version=helm))


def test_a_release_is_installed_from_a_registry(helm: str, charts: str) -> None:
    server = ApiServer()
    try:
        words = ("install", "my-run", f"{charts}/qwen-job", PLAIN, "--disable-openapi-validation")
        assert "STATUS: deployed" in run_helm(*words, "--kube-apiserver", server.url, version=helm)
        assert [thing["metadata"]["name"] for thing in server.find("PyTorchJob")] == ["my-run"]
    finally:
        server.close()


@pytest.mark.parametrize(
    ("first", "second", "jobs"),
    [("true", "true", ["b", "my-run"]), ("true", "false", ["my-run"]), ("false", "false", [])],
)
def test_conditions_of_a_parent_choose_its_jobs(
    parent: Path, helm: str, first: str, second: str, jobs: list[str]
) -> None:
    sets = f"training.enabled={first},second.enabled={second},second.name=b,second.cluster.nodes=2"
    made = load(run_helm("template", "my-run", parent, "--skip-tests", "--set", sets, version=helm))
    found = [thing for thing in made if thing["kind"] == "PyTorchJob"]
    assert sorted(job["metadata"]["name"] for job in found) == jobs
    assert validate(made) == []


def test_what_artifact_hub_reads_is_what_it_expects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    notes = {name.partition("/")[2]: text for name, text in chart["annotations"].items()}
    assert set(notes) == {"category", "license", "images", "links", "changes"}
    images = yaml.safe_load(notes["images"])
    assert [set(image) for image in images] == [{"name", "image"}] * len(images)
    assert {"ampere", "v100", "cpu"} <= {image["name"] for image in images}
    assert all(re.fullmatch(rf"ghcr\.io/[\w/-]+:v{re.escape(__version__)}-\w+", image["image"]) for image in images)
    assert all(isinstance(change, str) and change.endswith(".") for change in yaml.safe_load(notes["changes"]))
    assert chart["icon"].endswith(f"v{__version__}/charts/qwen-job/icon.svg") and (CHART / "icon.svg").exists()
    assert chart["home"] and chart["sources"] and [set(one) for one in chart["maintainers"]] == [{"name", "url"}]
