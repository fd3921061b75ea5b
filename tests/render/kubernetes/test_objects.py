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
from qwen_job.render.kubernetes.objects import literal
from qwen_job.render.kubernetes.pod_security import pod_security_level
from qwen_job.resources import resource
from tests.jobs import EXAMPLES
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
    def words(*layers: str) -> list[str]:
        return [str(word) for word in pod(*layers)["containers"][0]["command"]]

    limited = words("kubernetes.active_deadline=2h", "slurm.time=1h")
    assert limited[limited.index("--time_limit_seconds") + 1] == "7200"
    assert "--time_limit_seconds" not in words("slurm.time=1h")


def test_overlays_win_and_keep_the_rest() -> None:
    spec = pod("kubernetes.pod={hostPID: true}", "kubernetes.pod_container={resources: {limits: {cpu: '3'}}}")
    assert spec["hostPID"] is True
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "3", "nvidia.com/gpu": "8"}
    assert "cpu" not in spec["containers"][0]["resources"]["requests"]


def test_secrets_are_only_named() -> None:
    text = rendered("kubernetes.secret_env={HF_TOKEN: hub/token}", "kubernetes.env_from_secrets=[wandb]").text
    assert "secretKeyRef" in text and "secretRef" in text


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["name=Big_Job"], "name: 'Big_Job' is not a Kubernetes name"),
        ([f"name={'a' * 52}"], "over 51"),
        (["kubernetes.volumes=[{name: x, mount_path: /x, pvc: x}]"], "output: '/shared/runs/qwen-7b-chat' is not"),
        (
            ["kubernetes.volumes=[{name: x, mount_path: /shared, pvc: x, read_only: true}]"],
            "output: '/shared/runs/qwen-7b-chat' is on the read-only volume 'x'",
        ),
        (["kubernetes.volumes=[{name: tmp, mount_path: /shared, pvc: x}]"], "'tmp' is used by the job"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared}]"], "exactly one of pvc, nfs and host_path"),
        (["output=/elsewhere/run"], "no common folder"),
        (["kubernetes.kind=jobset", "kubernetes.queue=volcano"], "kubernetes.queue: volcano does not gang-schedule"),
        (["kubernetes.kind=trainjob", "kubernetes.master=true"], "kubernetes.master: a trainjob has no Master"),
        (["kubernetes.pod={x: null}"], "null has no effect"),
        (["kubernetes.queue=slurm"], "kubernetes.queue"),
        (["image=my image"], "image: 'my image' is not a valid image name"),
        (["env.HF_TOKEN=x"], "env.HF_TOKEN: looks like a secret"),
        (["image=docker://repo/x"], "is not a valid image name"),
        (["image=Repo/X:1:2"], "is not a valid image name"),
        (["kubernetes.kind=jobset", f"name={'a' * 46}"], "over 45 (a-z, 0-9 and -, a letter first"),
        (["kubernetes.egress=[10.0.0.0/8]"], "kubernetes.egress: has no effect without network_policy"),
        (["kubernetes.network_policy=true", "kubernetes.egress=[10.0.0.1/8]"], "has host bits set"),
        (["kubernetes.egress=[300.0.0.0/8]"], "kubernetes.egress"),
        (["kubernetes.labels={app.kubernetes.io/instance: x}"], "app.kubernetes.io/instance is written by"),
        (["kubernetes.labels={kueue.x-k8s.io/queue-name: x}"], "kueue.x-k8s.io/queue-name is written by"),
        (["kubernetes.labels={a..b/c: x}"], "kubernetes.labels"),
        (["kubernetes.annotations={helm.sh/hook: test}"], "helm.sh/hook is written by"),
        ([f"kubernetes.annotations={{a: {'x' * 270_000}}}"], "kubernetes.annotations: together over 256 KiB"),
        (["kubernetes.resources={rdma/hca: '0.5'}"], "not a whole number"),
        (["kubernetes.resources={gpu: '1'}"], "gpu is not a Kubernetes resource"),
        (["kubernetes.gpu_resource=gpu"], "kubernetes.gpu_resource"),
        (["kubernetes.run_as_user=3000000000"], "kubernetes.run_as_user"),
        (["kubernetes.active_deadline=0"], "kubernetes.active_deadline"),
        ([f"kubernetes.queue=kueue:{'q' * 64}"], "kubernetes.queue"),
        (["kubernetes.tolerations=[{key: a, operator: Exists, tolerationSeconds: 3}]"], "needs effect: NoExecute"),
        (["kubernetes.tolerations=[{key: a, operator: Exists, value: x}]"], "not allowed with Exists"),
        (["kubernetes.tolerations=[{operator: Is}]"], "write Exists or Equal"),
        (["kubernetes.tolerations=[{effect: NoSchedule}]"], "key: missing"),
        (["kubernetes.tolerations=[{key: 1}]"], "must be text"),
        (["kubernetes.tolerations=[{keyy: a}]"], "keyy: a toleration has"),
        (["kubernetes.tolerations=[{key: a b}]"], "is not a valid taint key"),
        (["kubernetes.tolerations=[{key: a, value: b c}]"], "is not a valid taint value"),
        (["kubernetes.tolerations=[{key: a, effect: Never}]"], "is none of NoSchedule"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared, size: '0'}]"], "size"),
        (["kubernetes.volumes=[{name: x, mount_path: /etc/qwen-job/x, pvc: x}]"], "is already in use"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared, host_path: /a/../b}]"], "must not contain '..'"),
        (["kubernetes.volumes=[{name: x, mount_path: /shared, pvc: x, sub_path: a/..}]"], "must not contain '..'"),
        (["kubernetes.pod={containers: [{name: pytorch}, {name: pytorch}]}"], "pod.containers[1]: appears twice"),
        (["kubernetes.pod={restartPolicy: Always}"], "kubernetes.pod: restartPolicy: a pytorchjob sets it itself"),
        (["kubernetes.pod={dnsPolicy: Sometimes}"], "kubernetes.pod: dnsPolicy: 'Sometimes' must be one of"),
        (["kubernetes.pod={terminationGracePeriodSeconds: -1}"], "is not a number of seconds"),
        (["kubernetes.pod_container={imagePullPolicy: Often}"], "kubernetes.pod_container: imagePullPolicy"),
        (["kubernetes.pod_container={image: ''}"], "is not an image"),
        (["kubernetes.pod_container={env: [{name: X, value: 1}]}"], "env: X: must be text"),
        (["kubernetes.pod_container={ports: [{containerPort: 70000}]}"], "70000 is not a port"),
        (["kubernetes.pod_container={volumeMounts: [{name: y, mountPath: /y}]}"], "no volume is named 'y'"),
        (["kubernetes.pod_container={resources: {limits: {memory: 8GB}}}"], "'8GB' is not a quantity"),
        (["kubernetes.pod_container={resources: {limits: {nvidia.com/gpu: 4}}}"], "limits.nvidia.com/gpu: the job has"),
        (["kubernetes.job={runPolicy: {cleanPodPolicy: running}}"], "kubernetes.job: runPolicy.cleanPodPolicy:"),
        (["kubernetes.job={nprocPerNode: 8}"], "nprocPerNode: must be text"),
        (["kubernetes.job={pytorchReplicaSpecs: {Worker: {restartPolicy: Now}}}"], "Worker.restartPolicy: 'Now'"),
        (["kubernetes.job={pytorchReplicaSpecs: {Worker: {replicas: 0}}}"], "replicas: 0 is not a number of pods"),
        (["kubernetes.kind=trainjob", "kubernetes.job={trainer: {numNodes: 0}}"], "numNodes: 0 is not a number"),
        (["kubernetes.kind=trainjob", "kubernetes.job={trainer: {env: [{name: PET_X}]}}"], "job.trainer.env[0]:"),
        (["kubernetes.prepare=true", "kubernetes.prepare_pod={dnsPolicy: Any}"], "kubernetes.prepare_pod: dnsPolicy"),
        (["kubernetes.memory=8Gi"], "kubernetes.memory: 8Gi is less than the 45Gi of host memory"),
        (["kubernetes.memory=200Gi", "kubernetes.shm_size=201Gi"], "200Gi is less than kubernetes.shm"),
        (["kubernetes.resources={memory: 8Gi}"], "kubernetes.resources.memory: 8Gi is less"),
        (["kubernetes.pod_container={resources: {limits: {memory: 8Gi}}}"], "resources.limits.memory: 8Gi"),
        (["kubernetes.pod={containers: [{name: pytorch, resources: {requests: {memory: 1G}}}]}"], "memory: 1G is"),
        (["kubernetes.cpu=64", "kubernetes.pod_container={resources: {limits: {cpu: 3}}}"], "cpu (64) is over"),
        (["kubernetes.memory=200"], "kubernetes.memory: '200' is not an amount of memory"),
        (["kubernetes.memory=900m"], "kubernetes.memory: '900m' is not an amount of memory"),
        (["kubernetes.shm_size=16"], "kubernetes.shm_size: '16' is not an amount"),
        (["kubernetes.prepare_memory=16"], "kubernetes.prepare_memory: '16' is not an amount"),
        (["kubernetes.cpu=16Gi"], "kubernetes.cpu: '16Gi' is not a number of cores"),
        (["kubernetes.cpu=0"], "kubernetes.cpu: '0' is not a number of cores"),
        (["kubernetes.cpu=true"], "kubernetes.cpu: expected text"),
        (["kubernetes.gpu_resource=nvidia.com/mig-3g.40gb"], "kubernetes.gpu_resource: a process sees only one"),
        (["kubernetes.gpu_resource=nvidia.com/gpu.shared"], "kubernetes.gpu_resource: a process sees only one"),
        (["kubernetes.gpu_resource=null", "kubernetes.resources={nvidia.com/mig-1g.10gb: 2}"], "10gb: a process sees"),
        (["kubernetes.gpu_resource=nvidia.com/mig-1g.10gb", "cluster.gpus_per_node=1"], "has 10 GB, but the plan"),
        (["kubernetes.active_deadline=150"], "kubernetes.active_deadline: 150 s leaves no time"),
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
        (["kubernetes.master=true"], "'baseline' (the operator's init container of each Worker)"),
        (["kubernetes.pod_container={securityContext: {allowPrivilegeEscalation: true}}"], "'baseline'"),
    ],
)
def test_render_says_the_security_level(sets: list[str], level: str) -> None:
    assert any(level in note for note in rendered(*sets).notes)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ([], "the 2 pods are scheduled one by one"),
        ([], "kubernetes.memory: not set, so each pod requests 45Gi"),
        (["kubernetes.cpu=3500m"], "kubernetes.cpu: 3500m for 8 processes"),
        (["kubernetes.pod={containers: [{name: side, image: x}]}"], "'side' must exit by itself"),
        (["kubernetes.kind=jobset"], "kueue:QUEUE schedules them together"),
        (["kubernetes.kind=trainjob", "kubernetes.ttl_after_finished=1d"], "a TrainJob has no such field"),
        (["kubernetes.queue=kueue:q", "kubernetes.suspend=true"], "Kueue still starts the job"),
        (
            ["kubernetes.volumes=[{name: x, mount_path: /shared, size: 1Ti, access_mode: ReadWriteOnce}]"],
            "'x' is ReadWriteOnce, which only one node can mount",
        ),
        (["kubernetes.prepare=true"], "token of its own account, which may patch only this pytorchjob"),
        (["kubernetes.prepare=true", "kubernetes.prepare_account=s"], "token of the account 's'"),
        (["kubernetes.prepare=true", "kubernetes.suspend=true"], "stays suspended"),
        ([f"env.X={'x' * 90_000}", f"env.Y={'x' * 90_000}", f"env.Z={'x' * 90_000}"], "kubectl apply --server-side"),
    ],
)
def test_render_says_what_a_person_should_know(sets: list[str], said: str) -> None:
    assert any(said in note for note in rendered(*sets).notes), rendered(*sets).notes


def test_the_preparation_takes_no_gpu_and_may_start_one_job_only() -> None:
    found = objects("kubernetes.prepare=true", "kubernetes.node_selector={pool: gpu}", "kubernetes.ipc_lock=true")
    spec = found["Job"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"] == {"cpu": "4", "memory": "16Gi"}
    assert spec["containers"][0]["command"][-2:] == ["--release", "pytorchjob/qwen-7b-chat"]
    assert not {"affinity", "nodeSelector", "hostNetwork"} & set(spec)
    assert spec["automountServiceAccountToken"] is True and spec["serviceAccountName"] == "qwen-7b-chat-prepare"
    (rule,) = found["Role"]["rules"]
    assert (rule["resourceNames"], rule["resources"], rule["verbs"]) == (
        ["qwen-7b-chat"], ["pytorchjobs"], ["get", "patch"],
    )  # fmt: skip
    assert found["PyTorchJob"]["spec"]["runPolicy"]["suspend"] is True
    assert found["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"][
        "automountServiceAccountToken"
    ] is False  # fmt: skip


def test_a_pod_requests_what_the_plan_needs_and_what_is_written_is_its_limit_too() -> None:
    resources = pod("cluster.cpus_per_gpu=null")["containers"][0]["resources"]
    gpus = {"nvidia.com/gpu": "8"}
    assert resources == {"requests": {"cpu": "16", "memory": "45Gi", **gpus}, "limits": gpus}
    resources = pod("kubernetes.cpu=64", "kubernetes.memory=900Gi")["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "64", "memory": "900Gi", **gpus}
    resources = pod("kubernetes.pod_container={resources: {limits: {memory: 300Gi}}}")["containers"][0]["resources"]
    assert "memory" not in resources["requests"] and resources["limits"]["memory"] == "300Gi"
    assert objects()["PyTorchJob"]["metadata"]["annotations"]["qwen-job/needs-memory"] == "45Gi"


@pytest.mark.parametrize(
    ("resource", "keys"),
    [
        ("nvidia.com/gpu", ["nvidia.com/gpu"]),
        ("nvidia.com/mig-7g.80gb", ["nvidia.com/mig-7g.80gb", "nvidia.com/gpu"]),
        ("amd.com/gpu", ["amd.com/gpu"]),
    ],
)
def test_the_taint_of_gpu_nodes_is_tolerated_whatever_the_resource(resource: str, keys: list[str]) -> None:
    spec = pod(f"kubernetes.gpu_resource={resource}", "cluster.gpus_per_node=1")
    assert [toleration["key"] for toleration in spec["tolerations"]] == keys


def test_numbers_may_stand_where_kubernetes_wants_their_text() -> None:
    sets = [
        "kubernetes.cpu=16",
        "kubernetes.resources={rdma/hca: 1}",
        "kubernetes.labels={v: 01}",
        "kubernetes.shm_size=2e9",
    ]
    things = objects(*sets)
    (worker,) = things["PyTorchJob"]["spec"]["pytorchReplicaSpecs"].values()
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["cpu"], limits["rdma/hca"]) == ("16", "1")
    assert worker["template"]["metadata"]["labels"]["v"] == "01"


def test_kueue_is_given_the_job_only_when_it_is_prepared() -> None:
    found = objects("kubernetes.prepare=true", "kubernetes.queue=kueue:team")
    assert "kueue.x-k8s.io/queue-name" not in found["PyTorchJob"]["metadata"]["labels"]
    command = found["Job"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[-2:] == ["--queue", "team"]


def test_a_preparation_that_starts_nothing_holds_no_token() -> None:
    found = objects("kubernetes.prepare=true", "kubernetes.suspend=true")
    assert not {"Role", "RoleBinding", "ServiceAccount"} & set(found)
    assert found["Job"]["spec"]["template"]["spec"]["automountServiceAccountToken"] is False


def test_the_launcher_is_told_when_to_give_up() -> None:
    command = pod("retry.max_without_progress=7")["containers"][0]["command"]
    assert command[command.index("--max_without_progress") + 1] == "7"


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob", "jobset"])
def test_the_pods_of_a_job_wait_for_one_that_is_lost(kind: str) -> None:
    two = ["cluster.nodes=2", "cluster.gpus_per_node=1", f"kubernetes.kind={kind}"]
    assert "--rejoin" in rendered(*two).text
    assert "--rejoin" not in rendered(f"kubernetes.kind={kind}", "cluster.nodes=1").text


def test_the_job_of_a_jobset_replaces_as_many_lost_pods_as_restarts_in_place_are_allowed() -> None:
    def job(*sets: str) -> dict[str, Any]:
        spec = objects("kubernetes.kind=jobset", "cluster.gpus_per_node=1", *sets)["JobSet"]["spec"]
        return dict(spec["replicatedJobs"][0]["template"]["spec"])

    assert job("cluster.nodes=2")["backoffLimit"] == 3
    assert job("cluster.nodes=2", "retry.in_place=7")["backoffLimit"] == 7
    # Without restarts in place nobody waits for a pod, and one pod has nobody to wait for it: the JobSet restarts all.
    assert job("cluster.nodes=2", "retry.in_place=0")["backoffLimit"] == 0
    assert job("cluster.nodes=1")["backoffLimit"] == 0
    # A final exit code is not made up for by another pod: it fails the Job, and so the JobSet.
    (rule,) = job("cluster.nodes=2")["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == list(range(1, 128))


@pytest.mark.parametrize("kind", ["pytorchjob", "trainjob", "jobset"])
@pytest.mark.parametrize("job", EXAMPLES, ids=lambda path: path.stem)
def test_a_restricted_namespace_admits_every_example(job: Path, kind: str) -> None:
    plan = make_plan(load_job([job], sets=[f"kubernetes.kind={kind}", "kubernetes.prepare=true"]))
    assert "the pods meet the Pod Security level 'restricted'" in render(plan, "kubernetes").notes


def test_what_is_no_secret_may_stand_in_env() -> None:
    assert rendered("env.EOS_TOKEN=x", "env.TOKENIZERS_PARALLELISM='false'", "env.WANDB_API_KEY=''")


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
    with pytest.raises(UsageError, match=r"configmap\.yaml\.j2 renders invalid YAML"):
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
