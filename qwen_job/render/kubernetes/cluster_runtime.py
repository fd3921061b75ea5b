"""Target kubeflow: a ClusterTrainingRuntime, with which a TrainJob of ten lines trains another model on other data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError, Problem
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.kubernetes.decisions import Settings, settings
from qwen_job.render.kubernetes.objects import Object, checked_objects, own_notes, security_notes
from qwen_job.render.quote import literal, to_yaml
from qwen_job.run.folder import JOB
from qwen_job.run.trainjob import COMMAND, TEMPLATE

# The Kubeflow SDK lists only runtimes with this label.
FRAMEWORK = {"trainer.kubeflow.org/framework": "torch"}
# Fields that belong to one job and its namespace.
_OF_ONE_JOB = {
    "namespace": "a ClusterTrainingRuntime serves every namespace",
    "prepare": "the first pod of a TrainJob prepares",
    "suspend": "set it in the TrainJob",
    "network_policy": "its objects belong to one namespace",
    "active_deadline": "set activeDeadlineSeconds in the TrainJob",
    "job": "set it in the TrainJob",
}


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return NAME.yaml with the runtime. The job's model, data and number of nodes are a TrainJob's defaults.

    Raises:
        JobError: for a job that Kubernetes could not run, or that asks for what only one job can have.
    """
    plan = _for_trainjobs(plan)
    if problems := list(_problems(plan)):
        raise JobError(problems)
    chosen = settings(plan)
    things = [cluster_runtime(plan, chosen, folders)]
    notes = (*chosen.notes, *own_notes(things), *security_notes([*things]), *_usage(chosen))
    name = f"{chosen.name}.yaml"
    text = f"---\n{to_yaml(things[0])}"
    return Bundle("kubeflow", {name: text}, name, notes=notes, objects=tuple(things))


def cluster_runtime(plan: Plan, chosen: Settings, folders: Sequence[str | Path] = ()) -> Object:
    """Return the runtime of a TrainJob, without namespace and ConfigMap: its pods plan for themselves.

    Raises:
        JobError: as :func:`render`.
    """
    things = checked_objects(plan, chosen, folders)
    (runtime,) = [thing for thing in things if thing["kind"] == "TrainingRuntime"]
    spec = runtime["spec"]
    job = spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["backoffLimit"] = chosen.in_place  # how many pods there are is for the TrainJob to say
    pod_labels, pod = job["template"]["metadata"]["labels"], job["template"]["spec"]
    main = next(one for one in pod["containers"] if one["name"] == "node")
    main["command"] = list(COMMAND)
    main["env"] = [*main["env"], {"name": TEMPLATE, "value": literal(chosen.files[JOB])}]
    if not main["resources"]["limits"] and "cpu" in main["resources"]["requests"]:
        # kubeflow 0.5 lists no runtime whose limits name no device.
        main["resources"]["limits"] = {"cpu": main["resources"]["requests"]["cpu"]}
    main["volumeMounts"] = [mount for mount in main["volumeMounts"] if mount["name"] != "config"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "config"]
    return {
        "apiVersion": runtime["apiVersion"],
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": chosen.name, "labels": {**pod_labels, **FRAMEWORK}},
        # The torch policy tells the pods how many they are.
        "spec": {**spec, "mlPolicy": {**spec["mlPolicy"], "torch": {}}},
    }


def _for_trainjobs(plan: Plan) -> Plan:
    """Return the plan with ``kubernetes.kind: trainjob``, unless the job names a kind."""
    if plan.job.wrote("kubernetes", "kind"):
        return plan
    section = plan.job.kubernetes.model_copy(update={"kind": "trainjob"})
    return replace(plan, job=plan.job.model_copy(update={"kubernetes": section}))


def _problems(plan: Plan) -> Iterator[Problem]:
    section = plan.job.kubernetes
    if section.kind != "trainjob":
        text = f"a ClusterTrainingRuntime is for TrainJobs, not for a {section.kind}; write trainjob"
        yield plan.job.problem(("kubernetes", "kind"), text)
    for name, why in _OF_ONE_JOB.items():
        if _set(getattr(section, name)):
            yield plan.job.problem(("kubernetes", name), f"{why}; remove the line")
    for index, volume in enumerate(section.volumes):
        if volume.size:
            text = "a ClusterTrainingRuntime creates no claim; remove the line, and name an existing one with pvc"
            yield plan.job.problem(("kubernetes", "volumes", index, "size"), text)


def _set(value: Any) -> bool:
    return value not in (None, False, {}, [])


def _usage(chosen: Settings) -> Iterator[str]:
    gang, _, queue = (chosen.section.queue or "").partition(":")
    if gang == "kueue":
        yield f"kubernetes.queue: Kueue looks at the TrainJob: label each with kueue.x-k8s.io/queue-name: {queue}"
    yield (
        f"apply it once as an administrator; a TrainJob with runtimeRef: {{name: {chosen.name}}} and the variables "
        "QWEN_JOB_MODEL and QWEN_JOB_DATA in trainer.env then trains: 'qwen-job docs kubernetes' shows one"
    )
