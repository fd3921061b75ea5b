"""The chart for people: no values, ten lines by hand, wrong values, hostile values, a real cluster's answers."""

from __future__ import annotations

import json
import resource as resource_module
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_job import __version__
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.render.kubernetes.pod_security import pod_security_level
from qwen_job.render.quote import to_yaml
from qwen_job.resources import resource
from qwen_job.run.config import parse_config
from tests.jobs import EXAMPLES
from tests.support.helm import WHEELS, run_helm
from tests.support.schemas import load, validate

CHART = resource("charts", "qwen-job")
CI = sorted((CHART / "ci").glob("*-values.yaml"))
CLUSTER = ("--api-versions", "v1/Pod")


def template(*arguments: str | Path, name: str = "my-run", version: str = "4.3.1") -> list[dict[str, Any]]:
    return load(run_helm("template", name, CHART, *arguments, version=version))


def refusal(*arguments: str | Path, name: str = "my-run", version: str = "4.3.1") -> str:
    with pytest.raises(AssertionError) as refused:
        template(*arguments, name=name, version=version)
    return str(refused.value)


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [thing for thing in objects if thing["kind"] == kind]
    return found


def configs(objects: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    data = of_kind(objects, "ConfigMap")["data"]
    return yaml.safe_load(data["train.yaml"]), json.loads(data["deepspeed.json"])


def container(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec = of_kind(objects, "PyTorchJob")["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    return dict(spec["containers"][0])


def variables(objects: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(objects)["env"] if "value" in entry}


@pytest.mark.parametrize("version", WHEELS)
@pytest.mark.parametrize("values", [None, *CI], ids=lambda path: path.stem if path else "no values")
def test_lints_and_gives_valid_objects(values: Path | None, version: str) -> None:
    arguments = ["-f", values] if values else []
    run_helm("lint", "--strict", CHART, *arguments, version=version)
    assert validate(template(*arguments, version=version)) == []


def test_packages_with_the_version_of_the_python_package(tmp_path: Path) -> None:
    run_helm("package", CHART, "-d", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"qwen-job-{__version__}.tgz"]


def test_shared_files_are_generated() -> None:
    script = CHART.parents[1] / "scripts" / "chart.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_values_it_is_the_reference_job() -> None:
    objects = template()
    train, deepspeed = configs(objects)
    assert (train["name"], train["output_dir"]) == ("my-run", "/shared/runs/my-run")
    assert (train["model"]["name"], train["world_size"]) == ("Qwen/Qwen-1_8B-Chat", 2)
    assert deepspeed["train_batch_size"] == 32
    assert container(objects)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    parse_config(train, "train.yaml")


def test_releases_share_no_name_and_no_output() -> None:
    one, two = ({(o["kind"], o["metadata"]["name"]) for o in template(name=name)} for name in ("one", "two"))
    assert not one & two


def test_ten_lines_by_hand() -> None:
    train, deepspeed = configs(template("-f", CHART / "ci" / "handwritten-values.yaml"))
    assert (train["model"]["name"], train["training"]["learning_rate"]) == ("Qwen/Qwen-7B-Chat", 2e-5)
    batch = train["training"]["per_device_train_batch_size"] * train["training"]["gradient_accumulation_steps"] * 16
    assert (train["world_size"], batch, deepspeed["train_batch_size"]) == (16, 32, 32)
    parse_config(train, "train.yaml")


def test_numbers_may_be_set_on_the_command_line() -> None:
    train, _ = configs(template("--set", "train.training.learning_rate=2e-5"))
    assert parse_config(train, "train.yaml").training.learning_rate == 2e-5


@pytest.mark.parametrize("version", WHEELS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("kubernetes.shmsize=1Gi", "shmsize"),
        ("nodes=2", "nodes"),
        ("cluster.nodes=0", "nodes"),
        ("kubernetes.kind=job", "pytorchjob"),
        ("kubernetes.queue=kueue", "queue"),
        ("train.training.per_device_train_batch_size=0", "per_device_train_batch_size"),
        ("train.precison=fp16", "precison"),
        ("train.training.learning_rate=fast", "learning_rate"),
        ("image=a b", "image"),
        ("cluster.nodes=3", "32 rows does not divide by 6 GPUs"),
        ("output=/other/x", "not below any volume's mount_path (/shared)"),
        ("kubernetes.volumes[0].name=tmp,kubernetes.volumes[0].mount_path=/shared", "already in use"),
        ("kubernetes.volumes[0].name=a,kubernetes.volumes[0].mount_path=/shared", "exactly one of pvc"),
        ("name=9lives", "name"),
        ("kubernetes.queue=volcano,kubernetes.kind=jobset", "does not gang-schedule a JobSet"),
        ("kubernetes.master=true,kubernetes.kind=trainjob", "a trainjob has no Master"),
        ("kubernetes.egress[0]=10.0.0.0/8", "has no effect without network_policy"),
        ("kubernetes.labels.app\\.kubernetes\\.io/name=x", "app.kubernetes.io/name is set by"),
        ("kubernetes.annotations.helm\\.sh/hook=x", "helm.sh/hook is set by"),
        ("kubernetes.volumes[0].name=a,kubernetes.volumes[0].mount_path=/dev/x,kubernetes.volumes[0].pvc=a", "/dev/x"),
        ("kubernetes.pod.restartPolicy=Always", "kubernetes.pod: restartPolicy"),
        ("kubernetes.pod.dnsPolicy=Sometimes", "kubernetes.pod: dnsPolicy"),
        ("kubernetes.pod.containers[0].image=x", "kubernetes.pod.containers[0]: has no name"),
        ("kubernetes.pod_container.env[0].name=X,kubernetes.pod_container.env[0].value=1", "write it in quotes"),
        (
            "kubernetes.pod_container.volumeMounts[0].name=x,kubernetes.pod_container.volumeMounts[0].mountPath=/x",
            "no volume",
        ),
        ("kubernetes.job.runPolicy.cleanPodPolicy=running", "cleanPodPolicy"),
        ("kubernetes.job.nprocPerNode=8", "nprocPerNode"),
        ("kubernetes.job.pytorchReplicaSpecs.Worker.replicas=0", "replicas"),
        ("kubernetes.job.pytorchReplicaSpecs.Worker.restartPolicy=Now", "restartPolicy"),
        ("kubernetes.job.pytorchReplicaSpecs.Boss.replicas=1", "neither Master nor Worker"),
        ("kubernetes.kind=trainjob,kubernetes.job.trainer.numNodes=0", "numNodes"),
        ("kubernetes.resources.rdma/hca=0.5", "hca"),
        ("kubernetes.memory=8Gi", "kubernetes.memory: 8Gi is less than the"),
        (
            "kubernetes.memory=900Gi,kubernetes.shm_size=1Ti",
            "kubernetes.memory: 900Gi is less than kubernetes.shm_size",
        ),
        ("kubernetes.memory=64", "memory"),
        ("kubernetes.cpu=16Gi", "cpu"),
        ("kubernetes.gpu_resource=nvidia.com/mig-1g.10gb", "kubernetes.gpu_resource: a process sees only one"),
        ("kubernetes.active_deadline=150", "kubernetes.active_deadline: 150 s leaves no time"),
        ("enabled=false", "enabled: is for a parent chart's condition"),
        ("env.9X=1", "env"),
        ("env.hfToken=x", "env.hfToken: looks like a secret"),
        ("env.DB=postgresql://me:geheim@db/x", "env.DB: looks like a secret"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong: str, said: str, version: str) -> None:
    assert said in refusal("--set", wrong, version=version)


@pytest.mark.parametrize("version", WHEELS)
def test_a_parent_chart_may_switch_it_by_a_condition(version: str, tmp_path: Path) -> None:
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "qwen-job").symlink_to(CHART)
    dependency = {"name": "qwen-job", "version": __version__, "condition": "qwen-job.enabled", "tags": ["train"]}
    chart = {"apiVersion": "v2", "name": "team", "version": "1.0.0", "dependencies": [dependency]}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    for enabled, kinds in (("true", {"ConfigMap", "PyTorchJob"}), ("false", set())):
        words = ("template", "my-run", tmp_path, "--skip-tests", "--set", f"qwen-job.enabled={enabled},global.a=b")
        assert {thing["kind"] for thing in load(run_helm(*words, version=version))} == kinds


def test_numbers_may_stand_where_kubernetes_wants_their_text() -> None:
    made = container(template("--set", "kubernetes.cpu=16,kubernetes.resources.rdma/hca=1"))
    assert made["resources"]["limits"] | {"cpu": "16", "rdma/hca": "1"} == made["resources"]["limits"]


def test_names_too_long_for_the_pods_are_refused() -> None:
    assert "over 51" in refusal(name="a" * 52)
    assert "over 45" in refusal("--set", "kubernetes.kind=jobset", name="a" * 46)


def test_a_restricted_namespace_admits_the_test_s_pod() -> None:
    assert pod_security_level(of_kind(template(), "Pod")["spec"]) == ("restricted", [])


@pytest.mark.parametrize("version", WHEELS)
def test_trainer_finds_the_runtime_before_the_job(version: str) -> None:
    """Helm applies kinds that it does not know by name, so the runtime goes ahead as a hook."""
    objects = template("--set", "kubernetes.kind=trainjob", version=version)
    assert of_kind(objects, "TrainingRuntime")["metadata"]["annotations"]["helm.sh/hook"] == "pre-install"
    assert "helm.sh/hook" not in of_kind(objects, "TrainJob")["metadata"]["annotations"]


# Helm's own toYaml does not indent lists.
LINT = (
    "{extends: default, rules: {line-length: disable, document-start: disable, empty-lines: {max-end: 1}, "
    "indentation: {indent-sequences: whatever}}}"
)


def test_yamllint_finds_nothing(tmp_path: Path) -> None:
    more = "kubernetes.kind=trainjob,kubernetes.prepare=true,kubernetes.network_policy=true"
    (tmp_path / "chart.yaml").write_text(run_helm("template", "my-run", CHART))
    (tmp_path / "more.yaml").write_text(run_helm("template", "my-run", CHART, "--set", more))
    for job in EXAMPLES:
        plan = make_plan(load_job([job], sets=["kubernetes.prepare=true", "kubernetes.kind=jobset"]))
        for target in ("kubernetes", "helm"):
            (tmp_path / f"{job.stem}-{target}.yaml").write_text(render(plan, target).text, "utf-8")
    words = [sys.executable, "-m", "yamllint", "--strict", "-d", LINT, tmp_path, CHART / "values.yaml", *CI]
    done = subprocess.run([*words, CHART / "Chart.yaml"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_a_template_costs_less_than_half_a_second() -> None:
    before = resource_module.getrusage(resource_module.RUSAGE_CHILDREN)
    template()
    after = resource_module.getrusage(resource_module.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_notes_say_what_to_type_next() -> None:
    plain = run_helm("install", "my-run", CHART, "--dry-run=client").partition("NOTES:")[2]
    assert "kubectl -n default get pytorchjob my-run" in plain and "preparation" not in plain
    sets = "kubernetes.prepare=true,kubernetes.kind=trainjob,kubernetes.ttl_after_finished=9,cluster.nodes=2"
    more = run_helm("install", "my-run", CHART, "--dry-run=client", "--set", sets).partition("NOTES:")[2]
    assert "kubectl -n default logs -f job/my-run-prepare" in more
    assert "delete trainingruntime my-run" in more and "has no such field" in more and "one by one" in more


def test_a_cluster_without_the_kind_is_told() -> None:
    assert "install the Kubeflow training-operator" in refusal(*CLUSTER)
    assert template(*CLUSTER, "--api-versions", "kubeflow.org/v1/PyTorchJob")
    assert template(*CLUSTER, "--set", "check_cluster=false")


hostile = st.one_of(
    st.sampled_from(
        ["$(HOME)", "$$(X)", "{{ .Values }}", "a\n---\nb: c", "yes", "1e5", "", " ", "`id`", '"\\', "你好🙂"]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(hostile, min_size=4, max_size=12))
def test_hostile_values_arrive_or_are_refused(values: list[str], tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    wanted = {f"V{index}": value for index, value in enumerate(values)}
    file.write_text(to_yaml({"env": wanted}), "utf-8")
    try:
        objects = template("-f", file)
    except AssertionError as refused:
        assert "env" in str(refused) or "control characters" in str(refused)
        assert any(set(value) & {*map(chr, range(0x7F, 0xA0)), "\ufffe", "\uffff"} for value in values)
        return
    got = variables(objects)
    assert {name: expanded(got[name]) for name in wanted} == wanted


def test_hostile_set_strings_arrive() -> None:
    text = "$(HOME) `id` {{ fail }} '\"\\"
    objects = template("--set-literal", f"env.X={text}")
    assert expanded(variables(objects)["X"]) == text


def expanded(value: str) -> str:
    """What a kubelet makes of a value in which no variable is to be found: ``$$`` becomes ``$``."""
    result, rest = "", value
    while rest:
        if rest.startswith("$$"):
            result, rest = result + "$", rest[2:]
        else:
            assert not rest.startswith("$(") or ")" not in rest, "would be expanded"
            result, rest = result + rest[0], rest[1:]
    return result
