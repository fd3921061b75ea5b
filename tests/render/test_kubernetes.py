"""Target kubernetes: what the objects hold, what is refused, and what render says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.errors import JobError, UsageError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import Bundle, render
from qwen_job.render.kubernetes import literal
from qwen_job.render.pod_security import pod_security_level
from qwen_job.resources import resource
from tests.support.schemas import load

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
PLAN = make_plan(load_job([JOB]))


def rendered(*sets: str, template_dirs: tuple[Path, ...] = ()) -> Bundle:
    return render(make_plan(load_job([JOB], sets=sets)), "kubernetes", template_dirs)


def objects(*sets: str) -> dict[str, Any]:
    return {thing["kind"]: thing for thing in load(rendered(*sets).text)}


def pod(*sets: str) -> dict[str, Any]:
    worker = objects(*sets)["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]
    return dict(worker["template"]["spec"])


def refused(*sets: str) -> str:
    with pytest.raises(JobError) as error:
        rendered(*sets)
    return str(error.value)


def test_two_renders_are_the_same_bytes() -> None:
    assert rendered().text == rendered().text


def test_workers_alone_meet_at_the_first() -> None:
    spec = objects()["PyTorchJob"]["spec"]
    assert spec["nprocPerNode"] == "8"
    assert spec["elasticPolicy"] == {"minReplicas": 2, "maxReplicas": 2, "rdzvBackend": "c10d", "maxRestarts": 10}
    assert spec["pytorchReplicaSpecs"]["Worker"]["restartPolicy"] == "ExitCode"
    command = pod()["containers"][0]["command"]
    assert command[command.index("--master_addr") + 1] == "qwen-7b-chat-worker-0"
    assert command[command.index("--node_rank") + 1] == "$(QWEN_JOB_NODE_RANK)"


def test_the_pod_has_time_to_save_and_room_to_talk() -> None:
    spec = pod("retry.grace=300", "kubernetes.shm_size=32Gi")
    assert spec["terminationGracePeriodSeconds"] > 300
    (shm,) = [volume for volume in spec["volumes"] if volume["name"] == "shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}


def test_the_time_limit_is_kubernetes_not_slurms() -> None:
    text = objects("kubernetes.active_deadline=2h")["ConfigMap"]["data"]["train.yaml"]
    assert "time_limit_seconds: 7200" in text
    assert "time_limit_seconds: null" in objects()["ConfigMap"]["data"]["train.yaml"]


def test_overlays_win_and_keep_the_rest() -> None:
    spec = pod("kubernetes.pod={hostPID: true}", "kubernetes.pod_container={resources: {limits: {cpu: '3'}}}")
    assert spec["hostPID"] is True
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "3", "nvidia.com/gpu": "8"}


def test_secrets_are_only_named() -> None:
    text = rendered("kubernetes.secret_env={HF_TOKEN: hub/token}", "kubernetes.env_from_secrets=[wandb]").text
    assert "secretKeyRef" in text and "secretRef" in text


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["name=Big_Job"], "name: 'Big_Job' is not a Kubernetes name"),
        ([f"name={'a' * 52}"], "over 51"),
        (["kubernetes.volumes=[{name: x, mount_path: /x, pvc: x}]"], "output: '/shared/runs/qwen-7b-chat' lies"),
        (
            ["kubernetes.volumes=[{name: x, mount_path: /shared, pvc: x, read_only: true}]"],
            "output: '/shared/runs/qwen-7b-chat' lies on the read-only volume 'x'",
        ),
        (["kubernetes.volumes=[{name: tmp, mount_path: /shared, pvc: x}]"], "'tmp' is the job's own"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared}]"], "exactly one of pvc, nfs and host_path"),
        (["output=/elsewhere/run"], "no folder in common"),
        (["kubernetes.kind=jobset", "kubernetes.queue=volcano"], "kubernetes.queue: volcano does not gang-schedule"),
        (["kubernetes.kind=trainjob", "kubernetes.master=true"], "kubernetes.master: a trainjob has no Master"),
        (["kubernetes.pod={x: null}"], "null means nothing"),
        (["kubernetes.queue=slurm"], "kubernetes.queue"),
        (["image=my image"], "image: 'my image' is not a registry's image"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused_by_field(sets: list[str], said: str) -> None:
    assert said in refused(*sets)


@pytest.mark.parametrize(
    ("sets", "level"),
    [
        ([], "restricted"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared, nfs: 'nas:/x'}]"], "'baseline' (nfs volume x)"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared, host_path: /x}]"], "'privileged' (hostPath volume x"),
        (["kubernetes.ipc_lock=true"], "'privileged' (capability IPC_LOCK)"),
        (["kubernetes.host_network=true"], "'privileged' (hostNetwork)"),
        (["kubernetes.pod_container={securityContext: {allowPrivilegeEscalation: true}}"], "'baseline'"),
    ],
)
def test_render_says_the_security_level(sets: list[str], level: str) -> None:
    assert any(level in note for note in rendered(*sets).notes)


def test_security_level_sees_every_way_out() -> None:
    bad = {
        "hostPID": True,
        "securityContext": {"seccompProfile": {"type": "Unconfined"}},
        "containers": [{"name": "c", "securityContext": {"privileged": True}, "ports": [{"hostPort": 80}]}],
    }
    level, reasons = pod_security_level(bad)
    assert level == "privileged"
    assert {"hostPID", "privileged container", "hostPort", "seccomp Unconfined", "root user"} <= set(reasons)


def test_a_users_template_replaces_ours_and_is_checked(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    folder.mkdir()
    (folder / "configmap.yaml.j2").write_text("kind: [\n")
    with pytest.raises(UsageError, match=r"configmap\.yaml\.j2 gives invalid YAML"):
        rendered(template_dirs=(tmp_path,))


def test_claims_with_a_size_are_made_and_kept() -> None:
    claim = objects("kubernetes.volumes=[{name: runs, mount_path: /shared, size: 1Ti}]")["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "qwen-7b-chat-runs"
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200))
def test_hostile_env_values_are_read_back(value: str) -> None:
    things = load(render(replace(PLAN, env={**PLAN.env, "X": value}), "kubernetes").text)
    entries = things[-1]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "X", "value": literal(value)} in entries


@given(st.text(st.sampled_from("$()Aa "), max_size=12))
def test_literal_survives_a_kubelet(value: str) -> None:
    assert kubelet(literal(value)) == value


def kubelet(text: str) -> str:
    """Expand as k8s.io/kubernetes/third_party/forked/golang/expansion does, with no variable defined."""
    result, at = [], 0
    while at < len(text):
        if text[at] == "$" and at + 1 < len(text):
            if text[at + 1] == "$":
                result.append("$")
                at += 2
                continue
            if text[at + 1] == "(" and ")" in text[at:]:
                result.append("<EXPANDED>")
                at = text.index(")", at) + 1
                continue
        result.append(text[at])
        at += 1
    return "".join(result)
