"""helm template with our values gives what render --target kubernetes gives, object by object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_job.job import load_job
from qwen_job.plan import Plan, make_plan
from qwen_job.render import render
from qwen_job.resources import resource
from tests.jobs import EXAMPLES
from tests.support.helm import WHEELS, run_helm
from tests.support.schemas import load, validate

CHART = resource("charts", "qwen-job")
JOBS = [*EXAMPLES, resource("configs", "jobs", "qwen2.5-7b-kueue-h100-2x8.yaml")]
REFERENCE = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
VARIANTS = {
    "master": ["kubernetes.master=true"],
    "one pod with a master": ["kubernetes.master=true", "cluster.nodes=1"],
    "trainjob": ["kubernetes.kind=trainjob", "kubernetes.active_deadline=2h", "kubernetes.queue=coscheduling"],
    "trainjob on volcano": ["kubernetes.kind=trainjob", "kubernetes.queue=volcano"],
    "trainjob in a queue of volcano": ["kubernetes.kind=trainjob", "kubernetes.queue=volcano:team"],
    "jobset": ["kubernetes.kind=jobset", "kubernetes.ttl_after_finished=1d", "kubernetes.active_deadline=3600"],
    "prepare": ["kubernetes.prepare=true", "kubernetes.secret_env={HF_TOKEN: hub/token}", "kubernetes.memory=900Gi"],
    "prepare for a queue": [
        "kubernetes.prepare=true", "kubernetes.kind=jobset", "kubernetes.queue=kueue:team", "kubernetes.namespace=x",
        "kubernetes.prepare_account=starter", "kubernetes.ttl_after_finished=1d", "kubernetes.topology=cloud/block",
    ],
    "prepare only": [
        "kubernetes.prepare=true", "kubernetes.suspend=true", "kubernetes.service_account=s",
        "kubernetes.queue=volcano", "kubernetes.kind=trainjob", "kubernetes.node_selector={pool: gpu}",
        "kubernetes.host_network=true", "kubernetes.prepare_pod={tolerations: [], nodeSelector: {pool: cpu}}",
        "kubernetes.ipc_lock=true",
        "kubernetes.gpu_products=[A]", "kubernetes.spread=zone", "kubernetes.priority_class=high",
        "kubernetes.topology=zone", "kubernetes.resources={rdma/hca: '1'}", "kubernetes.pod={hostIPC: false}",
        "kubernetes.pod_container={imagePullPolicy: Always}", "kubernetes.annotations={a: b}",
    ],
    "kueue": ["kubernetes.queue=kueue:team", "kubernetes.topology=cloud/block", "kubernetes.suspend=true"],
    "volcano": ["kubernetes.queue=volcano:team", "kubernetes.topology=topology.kubernetes.io/zone"],
    "network": [
        "kubernetes.network_policy=true", "kubernetes.egress=[10.0.0.0/8, 'fd00::/8']", "kubernetes.host_network=true",
        "kubernetes.ipc_lock=true", "kubernetes.resources={rdma/hca: '1'}",
    ],
    "secrets": [
        "kubernetes.env_from_secrets=[wandb]", "kubernetes.secret_env={HF_TOKEN: hub/token}",
        "kubernetes.image_pull_secrets=[registry]", "kubernetes.service_account=trainer",
    ],
    "nodes": [
        "kubernetes.gpu_products=[NVIDIA-A100-SXM4-80GB]", "kubernetes.node_selector={pool: gpu, 'x/y': ''}",
        "kubernetes.tolerations=[{key: spot, operator: Exists, effect: NoExecute, tolerationSeconds: 3600}]",
        "kubernetes.spread=kubernetes.io/hostname", "kubernetes.priority_class=high", "kubernetes.memory=900Gi",
    ],
    "volumes": [
        "kubernetes.volumes=[{name: runs, mount_path: /shared/runs, size: 1Ti, storage_class: fast},"
        "{name: data, mount_path: /shared/data, nfs: 'nas:/export/it', read_only: true, sub_path: a/b},"
        "{name: own, mount_path: /own, pvc: own, size: 10Gi, access_mode: ReadWriteOnce},"
        "{name: host, mount_path: /host, host_path: /mnt/x}]",
    ],
    "labels": ["kubernetes.labels={team: nlp}", "kubernetes.annotations={a/b: 'x: {{ y }} $(HOME)'}"],
    "overlays": [
        "kubernetes.pod={priority: 1000000, dnsConfig: {options: [{name: ndots, value: '1'}]}, hostIPC: false}",
        "kubernetes.pod_container={imagePullPolicy: Always, securityContext: {readOnlyRootFilesystem: false}}",
        "kubernetes.job={runPolicy: {backoffLimit: 0}}",
    ],
    "evaluation": [
        "evaluate={data: /shared/data/h$(x).json, suite: {tasks: [gsm8k], limit: 5, run_code: true}, before: false,"
        " time: 2h}",
        "kubernetes.queue=volcano:team", "kubernetes.spread=zone", "kubernetes.topology=zone",
        "kubernetes.host_network=true", "kubernetes.ipc_lock=true", "kubernetes.resources={rdma/hca: '1'}",
        "kubernetes.pod_container={resources: {limits: {memory: 300Gi}}, imagePullPolicy: Always}",
        "kubernetes.pod={tolerations: [{key: x, operator: Exists}]}", "kubernetes.node_selector={pool: gpu}",
        "kubernetes.prepare=true", "kubernetes.annotations={a: b}", "kubernetes.cpu=64",
    ],
    "evaluation of held-out rows": [
        "data.eval_split=0.1", "evaluate={}", "kubernetes.kind=jobset", "kubernetes.queue=kueue:team",
        "kubernetes.prepare_account=starter", "kubernetes.topology=cloud/block", "kubernetes.memory=900Gi",
        "kubernetes.namespace=x",
    ],
    "evaluation that the user starts": [
        "evaluate={suite: gsm8k}", "kubernetes.suspend=true", "kubernetes.kind=trainjob",
        "kubernetes.pod={containers: [{name: node, resources: {requests: {cpu: 3}}}]}",
    ],
    "a slice of a GPU": ["kubernetes.gpu_resource=nvidia.com/mig-7g.80gb", "cluster.gpus_per_node=1"],
    "no fixed user": ["kubernetes.run_as_user=null", "kubernetes.fs_group=null", "kubernetes.namespace=training"],
    "hostile env": [
        "env.A='$(HOME) $$(X) $$ $'", "env.B='{{ fail }} \"`x`'", 'env.C="a\\nb: c\\n---\\n"', "env.D=你好 🙂",
        'env.E="\\x01\\ufeff\\u2028 "', "env.F=1e5", "env.G=yes", "env.H=''",
    ],
}  # fmt: skip


def plan_of(job: Path, sets: list[str] | None = None) -> Plan:
    return make_plan(load_job([job], sets=sets or []))


def by_helm(plan: Plan, folder: Path, version: str = "4.3.1") -> list[dict[str, Any]]:
    values = folder / "values.yaml"
    values.write_text(render(plan, "helm").text, "utf-8")
    return load(run_helm("template", plan.job.name, CHART, "-f", values, "--skip-tests", version=version))


def ordered(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort objects, without the marks that make Helm, but not kubectl, apply one before the others."""
    for thing in objects:
        for name in [name for name in thing["metadata"]["annotations"] if name.startswith("helm.sh/hook")]:
            del thing["metadata"]["annotations"][name]
    return sorted(objects, key=lambda thing: (thing["kind"], thing["metadata"]["name"]))


@pytest.mark.parametrize("version", WHEELS)
@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_every_example_is_the_same_through_the_chart(job: Path, version: str, tmp_path: Path) -> None:
    plan = plan_of(job)
    ours = load(render(plan, "kubernetes").text)
    assert ordered(by_helm(plan, tmp_path, version)) == ordered(ours)
    assert validate(ours) == []


def test_a_run_of_a_sweep_lists_all_runs_on_either_way(tmp_path: Path) -> None:
    plan = plan_of(REFERENCE, ["sweep.train.seed=[1, 2]"]).sweep[1].plan
    ours = load(render(plan, "kubernetes").text)
    assert ordered(by_helm(plan, tmp_path)) == ordered(ours)
    (listed,) = [thing["data"]["sweep.json"] for thing in ours if thing["kind"] == "ConfigMap"]
    assert [run["folder"] for run in json.loads(listed)["runs"]] == ["seed=1", "seed=2"]


@pytest.mark.parametrize("sets", VARIANTS.values(), ids=VARIANTS)
def test_every_option_is_the_same_through_the_chart(sets: list[str], tmp_path: Path) -> None:
    plan = plan_of(REFERENCE, sets)
    ours = load(render(plan, "kubernetes").text)
    assert ordered(by_helm(plan, tmp_path)) == ordered(ours)
    assert validate(ours) == []
