"""The chart's option cluster_runtime: the runtime that target kubeflow renders, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.resources import resource
from tests.support.helm import WHEELS, run_helm
from tests.support.schemas import load, validate

CHART = resource("charts", "qwen-job")
JOB = resource("configs", "jobs", "qwen2.5-7b-kueue-h100-2x8.yaml")
VOLUME = "kubernetes.volumes[0]"
OPTIONS = ("--set", "cluster_runtime=true,kubernetes.kind=trainjob")


def template(*words: str | Path, version: str = "4.3.1") -> list[dict[str, Any]]:
    return load(run_helm("template", "shared", CHART, *OPTIONS, *words, version=version))


def container(runtime: dict[str, Any]) -> dict[str, Any]:
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return dict(pod["containers"][0])


@pytest.mark.parametrize("version", WHEELS)
def test_the_chart_makes_the_runtime_that_is_rendered(version: str, tmp_path: Path) -> None:
    sets = ["name=shared", "kubernetes.kind=trainjob", "kubernetes.prepare=false", "kubernetes.namespace=null"]
    plan = make_plan(load_job([JOB], sets=sets))
    (tmp_path / "values.yaml").write_text(render(plan, "helm").text)
    (ours,) = load(render(plan, "kubeflow").text)
    (theirs,) = template("-f", tmp_path / "values.yaml", version=version)
    assert validate([theirs]) == []
    extra = [entry for entry in container(theirs)["env"] if entry["name"] == "QWEN_JOB_KUBERNETES"]
    container(theirs)["env"].remove(*extra)
    by_name = {entry["name"]: entry for entry in container(theirs)["env"]}
    assert by_name == {entry["name"]: entry for entry in container(ours)["env"]}
    container(theirs)["env"][:] = container(ours)["env"]
    notes = theirs["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]
    assert notes == ours["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["metadata"]
    assert theirs == ours


def test_a_pod_of_the_chart_s_runtime_plans_with_the_chart_s_volumes() -> None:
    volume = "kubernetes.volumes[0].name=lake,kubernetes.volumes[0].mount_path=/lake,kubernetes.volumes[0].pvc=lake"
    more = "kubernetes.volumes[1].name=s,kubernetes.volumes[1].mount_path=/shared,kubernetes.volumes[1].pvc=s"
    (runtime,) = template("--set", f"{volume},{more}")
    told = {entry["name"]: entry["value"].replace("$$", "$") for entry in container(runtime)["env"]}
    told |= {"PET_NNODES": "2", "PET_MASTER_ADDR": "a-node-0-0.a", "JOB_COMPLETION_INDEX": "1"}
    told |= {"QWEN_JOB_DATA": "/lake/a.json"}
    result = CliRunner().invoke(cli, ["node", "trainjob", "--dry-run"], env=told)
    assert result.exit_code == 0, result.exception
    assert json.loads(result.stdout)["command"][4] == "2"


@pytest.mark.parametrize("version", WHEELS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("kubernetes.kind=jobset", "not for a jobset"),
        ("kubernetes.prepare=true", "kubernetes.prepare: belongs to one job"),
        (f"{VOLUME}.name=s,{VOLUME}.mount_path=/shared,{VOLUME}.size=1Ti", "no claim"),
        ("train.training.learning_rate=1", "train: has no effect"),
        ("output=/shared/x", "output: has no effect"),
        ("cluster.gpus_per_node=1", "cluster.gpus_per_node"),
    ],
)  # fmt: skip
def test_what_a_runtime_would_not_use_is_refused(wrong: str, said: str, version: str) -> None:
    with pytest.raises(AssertionError) as refused:
        template("--set", wrong, version=version)
    assert said in str(refused.value)
