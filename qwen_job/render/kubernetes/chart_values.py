"""The values of the Helm chart: a typed model that generates its schema and every values.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from qwen_job.facts import choices
from qwen_job.job.kubernetes import Kubernetes
from qwen_job.job.kubernetes_types import Cores, Memory, Natural
from qwen_job.job.types import Count, EnvName, Positive, Strict
from qwen_job.render.kubernetes.decisions import IMAGE, MAX_NAME, Settings
from qwen_job.render.kubernetes.needs import Evaluation
from qwen_job.render.quote import Unrepresentable

JobName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_NAME)]
Image = Annotated[str, Field(pattern=f"^{IMAGE}$", max_length=1000)]
# Helm silently drops a value with one of these characters, or changes it (U+0085).
LOST_BY_HELM = "\x7f-\x9f\ufffe\uffff"
CarriedText = Annotated[str, Field(pattern=f"^[^{LOST_BY_HELM}]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$")]


def check_carried(value: Any) -> None:
    """Check that Helm passes every text in ``value`` on unchanged.

    Raises:
        Unrepresentable: for the first text that it would not.
    """
    if isinstance(value, str) and re.search(f"[{LOST_BY_HELM}]", value):
        raise Unrepresentable(
            "contains a control character that Helm cannot represent (U+007F-U+009F); remove it", value
        )
    for item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        check_carried(item[0])
        check_carried(item[1])


class ChartCluster(Strict):
    """The pods."""

    nodes: Positive = Field(description="Number of pods, one per node")
    gpus_per_node: Positive = Field(description="GPUs (and processes) per pod")


class Variable(Strict):
    """One planned environment variable."""

    name: EnvName
    value: CarriedText


class Needs(Strict):
    """The resources that a planned pod needs."""

    cpu: Cores | None = None
    memory: Memory | None = None


class Planned(Strict):
    """The planned values; to change some of them, use train, deepspeed and env."""

    env: list[Variable]
    needs: Needs = Field(Needs.model_construct(), description="Resources that a pod needs; the default requests")
    files: dict[str, str] = Field(
        description="job.yaml, train.yaml and deepspeed.json; sweep.json for a run of a sweep"
    )


class ChartEvaluation(Strict):
    """The Job that evaluates the trained model."""

    options: list[CarriedText] = Field(description="Options of 'qwen-job evaluate RUN'; {run} is the run folder")
    time: Positive | None = Field(None, description="Time limit in seconds")
    cpu: Cores = Field(description="Cores that its pod needs")
    memory: Memory | None = Field(None, description="Host memory that its pod needs")


class ChartValues(Strict):
    """All fields of a values.yaml."""

    name: JobName | None = Field(None, description="Name of the job and its objects; default: the release name")
    image: Image = Field(description="Training image, preferably with its digest (name@sha256:...)")
    output: AbsolutePath | None = Field(
        None, description="Run folder; default: the planned one, with the release name as its last part"
    )
    cluster: ChartCluster = Field(
        description="Pods and GPUs; if you change them, the planned global batch size is kept"
    )
    env: dict[EnvName, CarriedText | int | float | bool] = Field(
        {}, description="Environment variables; these override the planned ones"
    )
    train: dict[str, Any] = Field({}, description="Overrides for train.yaml, e.g. {training: {learning_rate: 2.0e-5}}")
    deepspeed: dict[str, Any] = Field({}, description="Overrides for deepspeed.json")
    grace_seconds: Count = Field(description="Seconds that a pod has to save before it is killed")
    max_without_progress: Natural = Field(
        description="Attempts in a row without a newer checkpoint before the job fails with exit code 8"
    )
    in_place: Count = Field(
        choices.IN_PLACE, description="Restarts in place in a row without a newer checkpoint, before pods are restarted"
    )
    evaluate: ChartEvaluation | None = Field(
        None, description="A Job that evaluates on one GPU after the training; null: no evaluation"
    )
    kubernetes: Kubernetes = Field(description="The kubernetes section of job.yaml")
    enabled: bool = Field(True, description="For the condition of a parent chart; has no effect in this chart")
    cluster_runtime: bool = Field(
        False,
        description="Create a ClusterTrainingRuntime for TrainJobs instead of one job; needs kind: trainjob",
    )
    check_cluster: bool = Field(True, description="Fail the installation if the CRD of the job is missing")
    allow_change: bool = Field(False, description="Allow an upgrade to change an existing job")
    config: Planned = Field(description="The planned configuration, written by qwen-job render --target helm")


def chart_values(chosen: Settings, *, shipped: bool = False) -> list[dict[str, Any]]:
    """Return the fields in order, each with name, comment and value.

    ``shipped`` is for the chart's own values.yaml, which spells out every field and leaves names to the release.
    """
    values: dict[str, Any] = {
        "image": chosen.image,
        "output": None if shipped else chosen.output,
        "cluster": {"nodes": chosen.nodes, "gpus_per_node": chosen.gpus_per_node},
        "grace_seconds": chosen.grace_seconds,
        "max_without_progress": chosen.max_without_progress,
        "in_place": chosen.in_place,
        **({"evaluate": _evaluation(chosen.evaluate)} if chosen.evaluate else {}),
        "kubernetes": chosen.section.model_dump(exclude_defaults=not shipped),
        "config": {
            "env": [{"name": name, "value": value} for name, value in chosen.env.items()],
            "needs": chosen.needs,
            "files": chosen.files,
        },
    }
    if not shipped:
        # Always set, because Helm would otherwise keep the default list of volumes.
        values["kubernetes"]["volumes"] = [v.model_dump(exclude_defaults=True) for v in chosen.section.volumes]
    fields = ChartValues.model_fields
    wanted = fields if shipped else values
    return [
        {"name": name, "comment": fields[name].description, "value": values.get(name, fields[name].default)}
        for name in fields
        if name in wanted
    ]


def _evaluation(wanted: Evaluation) -> dict[str, Any]:
    values = {**wanted._asdict(), "options": list(wanted.options)}
    return {name: value for name, value in values.items() if value is not None}
