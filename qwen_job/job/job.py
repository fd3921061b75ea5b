"""The Job: what the user wrote, typed and checked, without any value that the user did not write.

- :class:`Job`: the sections together, and the runs of its sweep
- :class:`Point`: one run of a sweep; :class:`Axis`: one swept field
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr

from qwen_job.errors import Problem
from qwen_job.job.document import Document, Path, dotted
from qwen_job.job.evaluation import Evaluate
from qwen_job.job.hostfile import Hostfile
from qwen_job.job.kubernetes import Kubernetes
from qwen_job.job.model import Cluster, Container, Data, DeepSpeed, Local, Model, Retry, Train
from qwen_job.job.notify import Monitor, Notify, one_or_more
from qwen_job.job.planning import Planning
from qwen_job.job.slurm import Slurm
from qwen_job.job.types import EnvName, EnvValue, Strict, Text, section
from qwen_job.resources import cache_beside


class Job(Strict):
    """A fine-tuning job. Only name, model, data, output and cluster are required."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")] = Field(
        description="Name of the job: letters, digits, '.', '_' and '-', at most 63 characters"
    )
    model: Model = Field(description="The model to start from, e.g. Qwen/Qwen-1_8B-Chat")
    data: Data = Field(description="Conversations to train on, e.g. /shared/data/chats.json")
    output: Text = Field(description="Run folder, on storage that all nodes share")
    cluster: Cluster = Field(description="The nodes, e.g. {gpu: A100-80G, nodes: 1, gpus_per_node: 2}")
    image: Text | None = Field(
        None,
        description="Container image, preferably with its digest (name@sha256:...); default: the one of this version, "
        "which a checkout has to build",
    )
    train: Train = section()
    deepspeed: DeepSpeed = section()
    plan: Planning = section()
    env: dict[EnvName, EnvValue] = Field({}, description="Environment variables for every process")
    uses_env: list[EnvName] = Field([], description="Variables of the current shell that this file can use as ${NAME}")
    container: Container = section()
    retry: Retry = section()
    notify: Annotated[list[Notify], BeforeValidator(one_or_more)] = Field(
        [], description="Webhooks that hear how the run goes, e.g. {kind: slack, url: env:SLACK_WEBHOOK}"
    )
    monitor: Monitor = section()
    slurm: Slurm = section()
    kubernetes: Kubernetes = section()
    hostfile: Hostfile = section()
    local: Local = section()
    evaluate: Evaluate | None = Field(None, description="Evaluate the model after training; see below")
    sweep: dict[str, Any] = Field(
        {},
        description="A grid of values by field, e.g. {train.learning_rate: [1e-5, 2e-5]}; one run per combination",
    )
    template_dirs: list[Text] = Field(
        [], description="Folders with templates that replace the built-in ones of the same name"
    )

    _document: Document | None = PrivateAttr(None)
    _points: "tuple[Point, ...]" = PrivateAttr(())

    @property
    def model_cache(self) -> str:
        """The folder of downloaded and converted models; by default beside the run's folder, which all nodes share."""
        return self.model.cache_dir or cache_beside(self.output)

    @property
    def points(self) -> "tuple[Point, ...]":
        """The runs of the sweep, each with its own job; empty without a sweep."""
        return self._points

    def problem(self, path: Path, message: str) -> Problem:
        """Return a :class:`Problem` that points at where ``path`` was written, if it was written."""
        return (self._document or Document({})).problem(path, message)

    def text_of(self, *path: str | int) -> str:
        """Return the text that the user wrote for ``path``; empty for a number, a mapping or a default."""
        return (self._document.at(path) if self._document is not None else None) or ""

    def wrote(self, *path: str | int) -> bool:
        """Return whether the user wrote ``path``; False for a default."""
        return self._document is not None and path in self._document.positions


@dataclass(frozen=True)
class Axis:
    """One swept field and its values; ``path`` is where the list is in the document."""

    field: str
    path: Path
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    ``values``: by field; ``choice``: the index of each axis's value; ``folder``: its name below output.
    """

    folder: str
    values: dict[str, Any]
    choice: tuple[int, ...]
    axes: tuple[Axis, ...]
    job: Job

    def blame(self, problem: Problem) -> Problem:
        """Return the problem at the swept value that causes it, else with the name of this run."""
        return blame(problem, self.axes, self.choice, self.folder)


def blame(problem: Problem, axes: Sequence[Axis], choice: Sequence[int], folder: str) -> Problem:
    """Return a run's problem at the swept value that causes it, else with the name of the run."""
    for axis, index in zip(axes, choice, strict=True):
        # The field data.train.0.weight is data.train[0].weight in a problem.
        field = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", axis.field)
        unknown = problem.message.startswith("unknown field")
        if unknown and f"{field}.".startswith(f"{problem.field}."):
            message = re.sub(r"(did you mean '|; write )(?=[a-z_]+\.)", r"\1sweep.", problem.message)
            return problem._replace(field=dotted(axis.path), message=message)
        rest = problem.field.removeprefix(field)
        if rest != problem.field and (not rest or rest[0] in ".["):
            return problem._replace(field=dotted((*axis.path, index)) + rest)
    return problem._replace(message=f"{problem.message} (in the run {folder})")
