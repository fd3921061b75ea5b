"""Target kubeflow: a runtime that the operator's models accept, and what its pods make of a TrainJob."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.resources import resource
from qwen_job.run.config import parse_config
from tests.jobs import write
from tests.support.pages import blocks
from tests.support.schemas import load, validate

JOB = resource("configs", "jobs", "qwen2.5-7b-kueue-h100-2x8.yaml")
SETS = ("kubernetes.kind=trainjob", "kubernetes.prepare=false", "kubernetes.namespace=null")


def rendered(*sets: str) -> Bundle:
    return render(make_plan(load_job([JOB], sets=(*SETS, *sets))), "kubeflow")


def runtime(*sets: str) -> dict[str, Any]:
    (found,) = load(rendered(*sets).text)
    return dict(found)


def pod(found: dict[str, Any]) -> dict[str, Any]:
    (job,) = found["spec"]["template"]["spec"]["replicatedJobs"]
    return dict(job["template"]["spec"]["template"]["spec"])


def told(found: dict[str, Any], **more: str) -> dict[str, str]:
    """Return what a pod of the TrainJob ``my-run`` has in its environment, as Kubernetes and Trainer set it."""
    own = {entry["name"]: entry["value"].replace("$$", "$") for entry in pod(found)["containers"][0]["env"]}
    trainer = {"PET_NNODES": "4", "PET_NPROC_PER_NODE": "auto", "PET_MASTER_ADDR": "my-run-node-0-0.my-run"}
    return own | trainer | {"JOB_COMPLETION_INDEX": "2"} | more


def started(environment: dict[str, str]) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["node", "trainjob", "--dry-run"], env=environment)
    return result.exit_code, result.stdout if result.exit_code == 0 else f"{result.exception}{result.output}"


def test_the_operator_s_models_take_it() -> None:
    found = runtime()
    assert validate([found]) == []
    assert found["kind"] == "ClusterTrainingRuntime" and "namespace" not in found["metadata"]
    assert found["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch"
    assert found["spec"]["mlPolicy"] == {"numNodes": 2, "torch": {}}


def test_a_job_that_names_no_kind_becomes_a_runtime_of_trainjobs(tmp_path: Path) -> None:
    volumes = "[{name: d, mount_path: /data, pvc: d}, {name: r, mount_path: /runs, pvc: r}]"
    job = write(tmp_path, f"kubernetes: {{volumes: {volumes}}}\n")
    (found,) = load(render(make_plan(load_job([job])), "kubeflow").text)
    code, text = started(told(found, PET_NNODES="1"))
    assert code == 0 and yaml.safe_load(json.loads(text)["files"]["job.yaml"])["kubernetes"]["kind"] == "trainjob"


def test_a_cpu_runtime_names_a_device_for_the_sdk() -> None:
    found = runtime(
        "cluster.gpu=CPU", "cluster.gpus_per_node=2", "kubernetes.resources={}", "cluster.cpus_per_gpu=null"
    )
    assert list(pod(found)["containers"][0]["resources"]["limits"]) == ["cpu"]


def test_a_pod_needs_no_object_of_one_job() -> None:
    spec = pod(runtime())
    assert "config" not in [volume["name"] for volume in spec["volumes"]]
    assert "config" not in [mount["name"] for mount in spec["containers"][0]["volumeMounts"]]
    assert spec["containers"][0]["command"] == ["python3", "-m", "qwen_job", "node", "trainjob"]


def test_a_trainjob_chooses_model_data_nodes_and_any_field() -> None:
    more = {"QWEN_JOB_MODEL": "Qwen/Qwen3-8B", "QWEN_JOB_DATA": "/shared/data/mine.jsonl"}
    more["QWEN_JOB_SET"] = "train.learning_rate=2e-5\n\ntrain.num_train_epochs=1\n"
    code, text = started(told(runtime(), **more))
    assert code == 0, text
    made = json.loads(text)
    train = yaml.safe_load(made["files"]["train.yaml"])
    assert (train["name"], train["output_dir"], train["world_size"]) == ("my-run", "/shared/runs/my-run", 32)
    assert (train["model"]["name"], train["training"]["learning_rate"]) == ("Qwen/Qwen3-8B", 2e-5)
    assert [file["path"] for file in train["data"]["train"]] == ["/shared/data/mine.jsonl"]
    assert train["data"]["eval_split"] == 0.02  # of the runtime's job
    parse_config(train, "train.yaml")
    command = made["command"]
    assert command[command.index("--node_rank") + 1] == "2" and command[command.index("--nnodes") + 1] == "4"
    assert command[command.index("--master_addr") + 1] == "my-run-node-0-0.my-run"


def test_without_a_word_it_trains_the_runtime_s_job() -> None:
    code, text = started(told(runtime(), PET_NNODES="2"))
    train = yaml.safe_load(json.loads(text)["files"]["train.yaml"])
    assert code == 0 and train["model"]["name"] == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"QWEN_JOB_MODEL": "Qwen/Qwen2.5-VL-7B-Instruct"}, "model.name"),
        ({"QWEN_JOB_DATA": "/elsewhere/a.json"}, "no pod would see it"),
        ({"QWEN_JOB_OUTPUT": "/tmp/x"}, "no pod would see it"),
        ({"PET_MASTER_ADDR": "localhost"}, "the name of a TrainJob"),
        ({"QWEN_JOB_SET": "train.lr"}, "no assignment; write field=value"), ({"QWEN_JOB_SET": "train.sead=1"}, "seed"),
        ({"PET_NNODES": "two"}, "PET_NNODES: 'two' is not a number"), ({"PET_NNODES": ""}, "PET_NNODES: is not set"),
        ({"QWEN_JOB_TEMPLATE": "[a"}, "QWEN_JOB_TEMPLATE, QWEN_JOB_KUBERNETES: not YAML"),
        ({"QWEN_JOB_TEMPLATE": "a"}, "is not a job"), ({"QWEN_JOB_KUBERNETES": "{"}, "not JSON"),
        ({"QWEN_JOB_TEMPLATE": "{name: a}"}, "model"), ({"PET_NNODES": "3"}, "train.global_batch_size"),
    ],
)  # fmt: skip
def test_what_a_trainjob_asks_wrongly_is_refused_by_name(more: dict[str, str], said: str) -> None:
    code, text = started(told(runtime(), **more))
    assert code != 0 and said in text and "Traceback" not in text


@pytest.mark.parametrize(
    "wrong",
    [
        "kubernetes.kind=jobset", "kubernetes.namespace=a", "kubernetes.prepare=true", "kubernetes.suspend=true",
        "kubernetes.network_policy=true", "kubernetes.active_deadline=2h", "kubernetes.job={suspend: true}",
    ],
)  # fmt: skip
def test_what_belongs_to_one_job_is_refused(wrong: str) -> None:
    with pytest.raises(JobError, match=wrong.partition("=")[0]):
        rendered(wrong)


def test_a_claim_of_one_namespace_is_refused() -> None:
    with pytest.raises(JobError, match="creates no claim"):
        rendered("kubernetes.volumes=[{name: shared, mount_path: /shared, size: 1Ti}]")


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_the_guide_s_trainjob_is_one_and_starts(checkout: Path, language: str) -> None:
    page = checkout / "docs" / f"kubernetes{language}.md"
    (block,) = [one for one in blocks(page, "yaml") if "kind: TrainJob" in one]
    job = yaml.safe_load(block)
    assert validate([job]) == [] and len(block.splitlines()) <= 12
    assert job["spec"]["runtimeRef"]["name"] == runtime()["metadata"]["name"]
    given = {entry["name"]: entry["value"] for entry in job["spec"]["trainer"]["env"]}
    code, text = started(told(runtime(), PET_NNODES=str(job["spec"]["trainer"]["numNodes"]), **given))
    assert code == 0, text
