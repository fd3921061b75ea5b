"""A user's own fields beside ours: lists are merged by key, and what would replace what the job needs is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.render.kubernetes.merge import KEYS, key_of, merge
from qwen_job.resources import resource
from tests.render.kubernetes.overlaid import MERGED, REFUSED, REFUSED_OF_JOBS, named
from tests.support.pods import templates
from tests.support.schemas import load, validate

JOB = resource("configs", "jobs", "qwen-7b-chat-a100-2x8.yaml")
PLAN = make_plan(load_job([JOB]))
KINDS = ["pytorchjob", "trainjob", "jobset"]


def objects(fields: object = "{}", kind: str = "pytorchjob") -> list[dict[str, Any]]:
    section = named(kind, fields)
    sets = [f"kubernetes.{name}={json.dumps(value)}" for name, value in section.items()]
    return load(render(make_plan(load_job([JOB], sets=sets)), "kubernetes").text)


def refused(fields: object, kind: str = "pytorchjob") -> list[str]:
    """Return the fields that are named, without ``kubernetes.``."""
    with pytest.raises(JobError) as error:
        objects(fields, kind)
    return [problem.field.removeprefix("kubernetes.") for problem in error.value.problems]


def pods(things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [pod["spec"] for thing in things for _, pod in templates(thing)]


def lists(value: Any, place: str = "") -> dict[str, list[Any]]:
    """Return every list below ``value`` by its place; items with a key are told by it."""
    found = {}
    for key, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, list) and key in KEYS:
            found[f"{place}.{key}"] = [key_of(key, part) for part in item]
            for part in item:
                found |= lists(part, f"{place}.{key}{key_of(key, part)}")
        elif isinstance(item, list):
            found[f"{place}.{key}"] = item
        else:
            found |= lists(item, f"{place}.{key}")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", MERGED.values(), ids=MERGED)
def test_nothing_of_ours_is_lost_and_all_is_admissible(fields: dict[str, Any], kind: str) -> None:
    things = objects(fields, kind)
    ours, both = (
        lists(pods(some)[0])
        for some in (objects({k: v for k, v in fields.items() if k not in ("pod", "pod_container")}, kind), things)
    )
    for place, items in ours.items():
        if not place.endswith("nodeSelectorTerms"):
            assert [item for item in items if item not in both[place]] == [], place
    assert validate(things) == []


def test_what_the_user_wrote_is_there() -> None:
    (pod,) = pods(objects(MERGED["a Secret, a ConfigMap and a CSI volume"]))
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    wanted = {"/s": "s", "/c": "c", "/v": "v", "/tmp/": "tmp", "/etc/qwen-job": "config", "/shared": "shared"}
    assert wanted.items() <= mounts.items() and "/tmp" not in mounts
    (pod,) = pods(objects(MERGED["an init container with its own volume"]))
    assert [container["name"] for container in pod["initContainers"]] == ["i"]


def test_every_alternative_of_the_user_still_asks_for_the_gpu() -> None:
    (pod,) = pods(objects(MERGED["tolerations and places"]))
    affinity = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    asked = [{e["key"] for e in term["matchExpressions"]} for term in affinity["nodeSelectorTerms"]]
    assert asked == [{"nvidia.com/gpu.product", "pool"}, {"nvidia.com/gpu.product"}]
    assert {t["key"] for t in pod["tolerations"]} == {"nvidia.com/gpu", "spot", "team"}


def test_a_variable_and_a_volume_have_one_source() -> None:
    (pod,) = pods(objects(MERGED["a variable from a secret"]))
    (entry,) = [entry for entry in pod["containers"][0]["env"] if entry["name"] == "NCCL_DEBUG"]
    assert set(entry) == {"name", "valueFrom"}
    (pod,) = pods(objects("pod: {volumes: [{name: tmp, csi: {driver: d}}]}"))
    assert {"name": "tmp", "csi": {"driver": "d"}} in pod["volumes"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", REFUSED)
def test_what_would_replace_ours_is_refused_where_it_was_written(field: str, kind: str) -> None:
    assert refused(REFUSED[field], kind) == [field]


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind in KINDS for field in REFUSED_OF_JOBS[kind]])
def test_a_job_keeps_its_form(kind: str, field: str) -> None:
    assert refused(REFUSED_OF_JOBS[kind][field], kind) == [field]


def test_what_prepares_is_merged_like_the_rest_and_kept_like_it() -> None:
    own = "{prepare: true, prepare_pod: {containers: [{name: prepare, %s}]}}"
    (preparing, _) = pods(objects(own % "env: [{name: A, value: b}]"))
    assert {"A", "NCCL_DEBUG"} <= {entry["name"] for entry in preparing["containers"][0]["env"]}
    assert refused(own % "command: [x]") == ["prepare_pod.containers[0].command"]


OWN = "{pod: {volumes: [{name: v, %s}]}, pod_container: {volumeMounts: [{name: v, mountPath: /shared}]}, prepare: %s}"


def test_a_jobs_paths_may_lie_on_a_volume_of_the_users_own() -> None:
    (pod,) = pods(objects(OWN % ("csi: {driver: d}", "false")))
    assert [volume["name"] for volume in pod["volumes"]] == ["config", "shm", "tmp", "v"]
    assert refused(OWN % ("secret: {secretName: s}", "false")) == ["output", "model.cache_dir"]
    assert refused(OWN % ("emptyDir: {}", "false")) == ["output"]
    assert set(refused(OWN % ("csi: {driver: d}", "true"))) == {"prepare_pod"}


WORDS = st.sampled_from(
    [
        "containers", "env", "volumes", "ports", "resources", "limits", "securityContext", "capabilities", "add",
        "affinity", "nodeAffinity", "spec", "template", "nodeSelectorTerms", "matchExpressions", "pytorchReplicaSpecs",
        "Worker", "replicas", "trainer", "replicatedJobs", "network",
    ]
)  # fmt: skip
NAMES_AND_NUMBERS = st.sampled_from(["pytorch", "node", "", "/tmp", 0, -1, 1.5, True])
NONSENSE = st.recursive(
    NAMES_AND_NUMBERS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.one_of(WORDS, st.just("name")), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    field=st.sampled_from(["pod", "pod_container", "job", "prepare_pod"]),
    kind=st.sampled_from(KINDS),
    fields=st.dictionaries(WORDS, NONSENSE, max_size=3),
)
@example(field="pod", kind="jobset", fields={"initContainers": 1.5})
@example(field="job", kind="jobset", fields={"spec": [["8Gi", {"containers": ["text"]}]]})
def test_nonsense_is_taken_or_refused_by_its_field(field: str, kind: str, fields: dict[str, Any]) -> None:
    section = PLAN.job.kubernetes.model_copy(update={"kind": kind, "prepare": True, field: fields})
    plan = replace(PLAN, job=PLAN.job.model_copy(update={"kubernetes": section}))
    try:
        render(plan, "kubernetes")
    except JobError as error:
        assert all(problem.field.startswith("kubernetes.") for problem in error.problems)


SCALARS = st.one_of(st.text(max_size=3), st.integers(-3, 3), st.booleans())
PLAIN = st.dictionaries(st.sampled_from(["a", "b"]), SCALARS)


@given(base=PLAIN, layer=PLAIN)
def test_of_plain_values_the_users_win(base: dict[str, Any], layer: dict[str, Any]) -> None:
    assert merge(base, layer) == {**base, **layer}


NAMES = st.lists(st.sampled_from("abcdef"), unique=True)


@given(ours=NAMES, theirs=NAMES)
def test_a_list_by_key_is_a_union_in_order(ours: list[str], theirs: list[str]) -> None:
    merged = merge(
        {"env": [{"name": n, "value": "1"} for n in ours]}, {"env": [{"name": n, "value": "2"} for n in theirs]}
    )
    assert [entry["name"] for entry in merged["env"]] == [*ours, *(name for name in theirs if name not in ours)]
    assert {entry["name"] for entry in merged["env"] if entry["value"] == "2"} == set(theirs)
