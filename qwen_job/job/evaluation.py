"""The section ``evaluate`` of a job, and what of its suite can be checked before anything runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from qwen_job.errors import Problem
from qwen_job.facts import choices
from qwen_job.facts.suites import TASK_NAME, LocalTask, groups_of, missing_files, tasks_of
from qwen_job.job.document import Document
from qwen_job.job.types import Count, DataPath, Positive, SlurmTime, Strict, Text
from qwen_job.text import did_you_mean


def _task_name(name: str) -> str:
    if "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is a path: write it as evaluate.suite.folder")
    if not re.match(TASK_NAME, name):
        raise ValueError(f"{name!r} is no name of a task: letters, digits and _ . + - only")
    return name


TaskName = Annotated[str, AfterValidator(_task_name), WithJsonSchema({"type": "string", "pattern": TASK_NAME})]


class Suite(Strict):
    """Benchmark tasks of lm-eval. ``suite: gsm8k`` is short for ``suite: {tasks: [gsm8k]}``."""

    tasks: list[TaskName] = Field(
        [], description="Tasks, groups or tags of lm-eval by name; default: every task of folder"
    )
    folder: Text | None = Field(
        None, description="Folder of tasks (lm-eval's YAML); relative data files of a task start there"
    )
    limit: Positive | None = Field(None, description="Questions of each task; default: all")
    few_shot: Count | None = Field(None, description="Examples before each question; default: the task's own number")
    batch_size: Positive | None = Field(None, description="Questions at a time; default: what fits")
    backend: choices.SuiteBackend = Field("transformers", description="What runs the model; vllm must be installed")
    chat_template: bool = Field(True, description="Ask in the model's chat template, with reasoning switched off")
    run_code: bool = Field(False, description="Allow tasks that run the model's answers as code, such as humaneval")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"tasks": value} if isinstance(value, (str, list)) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_task(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _not_empty(self) -> "Suite":
        if not self.tasks and self.folder is None:
            raise ValueError("name tasks of lm-eval, e.g. {tasks: [gsm8k]}, or a folder of tasks")
        return self


class Evaluate(Strict):
    """An evaluation on one GPU after training: held-out loss, perplexity, sample answers, benchmark scores."""

    data: DataPath | None = Field(
        None,
        description="Held-out conversations, named as in data.train; default: the first entry of data.eval, or the "
        "share of data.eval_split",
    )
    samples: Count = Field(5, description="Number of sample questions")
    max_new_tokens: Positive = Field(128, description="Maximum answer length")
    suite: Suite | None = Field(None, description="Benchmark tasks to score the model on; see below")
    before: bool = Field(True, description="Also measure the model before training")
    time: SlurmTime | None = Field(
        None,
        description="Time limit of the evaluation; default: the partition's, on Kubernetes none",
    )


def suite_problems(suite: Suite | None, document: Document) -> Iterator[Problem]:
    """Yield what is wrong with a suite's folder, if it is on this machine."""
    if suite is None or suite.folder is None or not (folder := Path(suite.folder)).is_dir():
        return
    field, found = ("evaluate", "suite"), tasks_of(folder)
    if not found and not suite.tasks:
        yield document.problem((*field, "folder"), f"{folder}: no .yaml file in it has a task:; see docs/training.md")
    near = set(found) | groups_of(folder)
    for index, name in enumerate(suite.tasks):
        # A name that is close to one of the folder's is no task of lm-eval's own.
        if name not in near and (hint := did_you_mean(name, near)):
            yield document.problem((*field, "tasks", index), f"{folder} has no task {name!r}{hint}")
    for name in suite.tasks or found:
        yield from _missing(found.get(name), folder, document)


def _missing(task: LocalTask | None, folder: Path, document: Document) -> Iterator[Problem]:
    for name in missing_files(task, folder) if task else ():
        assert task is not None
        message = f"{task.file}: {name}: no such file; a task's relative data files start at {folder}"
        yield document.problem(("evaluate", "suite", "folder"), message)
