"""The values of the Helm chart: a typed model, from which its schema and every values.yaml are made."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from qwen_job.job.kubernetes import Kubernetes
from qwen_job.job.kubernetes_types import Cores, Memory, Natural
from qwen_job.job.types import Count, EnvName, Positive, Strict
from qwen_job.render.kubernetes.settings import IMAGE, MAX_NAME, Settings
from qwen_job.render.quote import Unrepresentable

JobName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_NAME)]
Image = Annotated[str, Field(pattern=f"^{IMAGE}$", max_length=1000)]
# Helm turns a value with one of these into nothing, or into another one (U+0085), without a word.
LOST_BY_HELM = "\x7f-\x9f\ufffe\uffff"
CarriedText = Annotated[str, Field(pattern=f"^[^{LOST_BY_HELM}]*$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$")]


def check_carried(value: Any) -> None:
    """Raise :class:`Unrepresentable` for the first text in ``value`` that Helm would lose."""
    if isinstance(value, str) and re.search(f"[{LOST_BY_HELM}]", value):
        raise Unrepresentable("holds a control character that Helm cannot carry (U+007F-U+009F); remove it", value)
    for item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        check_carried(item[0])
        check_carried(item[1])


class ChartCluster(Strict):
    """The pods."""

    nodes: Positive = Field(description="Pods, one a machine")
    gpus_per_node: Positive = Field(description="GPUs, and so processes, of each pod")


class Variable(Strict):
    """One planned environment variable."""

    name: EnvName
    value: CarriedText


class Needs(Strict):
    """What a pod of the plan needs of its node."""

    cpu: Cores | None = None
    memory: Memory | None = None


class Planned(Strict):
    """What the plan decided; write train, deepspeed and env to change a part of it."""

    env: list[Variable]
    needs: Needs = Field(Needs.model_construct(), description="What a pod needs; requested where nothing is written")
    files: dict[str, str] = Field(description="job.yaml, train.yaml and deepspeed.json")


class ChartValues(Strict):
    """Everything that may stand in a values.yaml."""

    name: JobName | None = Field(None, description="Name of the job and its objects; default: the release's name")
    image: Image = Field(description="The training image, best with its digest (name@sha256:...)")
    output: AbsolutePath | None = Field(
        None, description="The run's folder; default: the planned one, its last part the release's name"
    )
    cluster: ChartCluster = Field(description="Pods and GPUs; the global batch of the plan is kept when they change")
    env: dict[EnvName, CarriedText | int | float | bool] = Field(
        {}, description="More environment variables, or others"
    )
    train: dict[str, Any] = Field({}, description="Laid over train.yaml, e.g. {training: {learning_rate: 2.0e-5}}")
    deepspeed: dict[str, Any] = Field({}, description="Laid over deepspeed.json")
    grace_seconds: Count = Field(description="Seconds that a pod gets to save before it is killed")
    max_without_progress: Natural = Field(
        description="Tries in a row that bring no newer checkpoint, before the job ends with exit code 8"
    )
    kubernetes: Kubernetes = Field(description="The kubernetes section of job.yaml, field by field")
    enabled: bool = Field(True, description="For a parent chart's condition; the chart itself cannot be switched off")
    check_cluster: bool = Field(True, description="Refuse to install where the job's CRD is missing")
    allow_change: bool = Field(False, description="Let an upgrade change a job that exists already")
    config: Planned = Field(description="What the plan decided, made by qwen-job render --target helm")


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
        "kubernetes": chosen.section.model_dump(exclude_defaults=not shipped),
        "config": {
            "env": [{"name": name, "value": value} for name, value in chosen.env.items()],
            "needs": chosen.needs,
            "files": chosen.files,
        },
    }
    if not shipped:
        # Helm would merge nothing else away: the shipped list of volumes is never this job's.
        values["kubernetes"]["volumes"] = [v.model_dump(exclude_defaults=True) for v in chosen.section.volumes]
    fields = ChartValues.model_fields
    wanted = fields if shipped else values
    return [
        {"name": name, "comment": fields[name].description, "value": values.get(name, fields[name].default)}
        for name in fields
        if name in wanted
    ]
