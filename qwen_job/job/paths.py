"""Which fields of a job are paths, and how relative ones are resolved."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from qwen_job.errors import JobError
from qwen_job.facts import choices
from qwen_job.facts.data_names import is_name
from qwen_job.job.document import Document
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.evaluation import suite_problems
from qwen_job.job.job import Job
from qwen_job.text import did_you_mean

STDIN = "job.yaml (stdin)"
# Linux's own limits, minus room for the paths that we create below a folder.
MAX_PATH, MAX_NAME = 3_800, 255
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


class JobPath(NamedTuple):
    """A field of a job that holds a path on the cluster, and whether the job writes there."""

    field: FieldPath
    path: str
    writes: bool = False
    is_file: bool = False

    @property
    def folder(self) -> str:
        """The folder that must be visible to the job: the path itself, or that of a file."""
        return str(PurePosixPath(self.path).parent) if self.is_file else self.path


def paths_of(job: Job) -> list[JobPath]:
    """Return every path in the job that its nodes use, as far as the user wrote it."""
    found = [JobPath(("output",), job.output, writes=True)]
    if job.model.cache_dir:
        found.append(JobPath(("model", "cache_dir"), job.model.cache_dir, writes=True))
    if job.model.resolved_source == "local":
        found.append(JobPath(("model", "name"), job.model.name))
    if job.data.cache_dir:
        found.append(JobPath(("data", "cache_dir"), job.data.cache_dir, writes=True))
    if job.monitor.prometheus_file:
        field = ("monitor", "prometheus_file")
        found.append(JobPath(field, job.monitor.prometheus_file, writes=True, is_file=True))
    if job.data.template not in choices.NAMED_TEMPLATES:
        found.append(JobPath(("data", "template"), job.data.template, is_file=True))
    for name in ("train", "eval"):
        for index, file in enumerate(getattr(job.data, name)):
            if not is_name(file.path):
                found.append(JobPath(("data", name, index, "path"), file.path, is_file=True))
    if job.evaluate and job.evaluate.data and not is_name(job.evaluate.data):
        found.append(JobPath(("evaluate", "data"), job.evaluate.data, is_file=True))
    if job.evaluate and job.evaluate.suite and job.evaluate.suite.folder:
        found.append(JobPath(("evaluate", "suite", "folder"), job.evaluate.suite.folder))
    return found


def source_cache(job: Job) -> Path:
    """Return the folder that the data sets of a job, where it names some, are fetched into."""
    return Path(job.data.cache_dir or job.model_cache)


def resolve_paths(job: Job, document: Document) -> Job:
    """Return the job with absolute paths: relative ones start at the folder of the file that contains them.

    Raises:
        JobError: a path is a URL, is too long or names an unknown user's home; a relative one is missing;
            a suite's folder lacks a task or its rows.
    """
    # Listed even when empty, so that the job.yaml of every run shows whether it evaluates.
    job = _replaced(job, ("data", "eval"), list(job.data.eval))
    fields: list[tuple[FieldPath, str]] = [(one.field, one.path) for one in paths_of(job)]
    fields += [(("template_dirs", index), folder) for index, folder in enumerate(job.template_dirs)]
    for field, path in fields:
        job = _replaced(job, field, _absolute(path, field, document))
    _refuse_missing(job, document)
    if problems := list(suite_problems(job.evaluate.suite if job.evaluate else None, document)):
        raise JobError(problems)
    return job


def _refuse_missing(job: Job, document: Document) -> None:
    """Refuse a model, data or template that is missing where it must be: a relative path is one on this machine.

    Raises:
        JobError: lists all of them.
    """
    problems = []
    for one in paths_of(job):
        written = str(document.at(one.field) or "")
        if one.writes or written.startswith(("/", "~")) or not written or os.access(one.path, os.F_OK):
            continue
        if one.field == ("data", "template"):
            hint = f"write a Jinja file, auto or chatml{did_you_mean(written, choices.NAMED_TEMPLATES)}"
        else:
            hint = "write the path that the nodes use; a relative one starts at the folder of the job file"
        kind = "file" if one.is_file else "folder"
        problems.append(document.problem(one.field, f"{one.path}: no such {kind}; {hint}"))
    if problems:
        raise JobError(problems)


def _replaced(value: Any, field: FieldPath, new: Any) -> Any:
    """Return a copy of ``value`` with ``new`` at ``field``."""
    if not field:
        return new
    head, *rest = field
    if isinstance(value, list):
        return [_replaced(item, tuple(rest), new) if i == head else item for i, item in enumerate(value)]
    inner = _replaced(getattr(value, str(head)), tuple(rest), new)
    return value.model_copy(update={str(head): inner})


def _absolute(text: str, field: FieldPath, document: Document) -> str:
    position = document.position(field)
    source = position.source if position else ""
    # --set, stdin and pipes such as <(...) have no folder: resolve against the working directory.
    without_folder = source in ("", "--set", STDIN) or source.startswith(("/dev/", "/proc/"))
    base = Path() if without_folder else Path(source).parent
    if scheme := _SCHEME.match(text):
        message = f"{scheme[0]} is not supported: copy the file to storage that the job can read, and write that path"
    elif len(os.fsencode(text)) > MAX_PATH or max(len(os.fsencode(part)) for part in text.split("/")) > MAX_NAME:
        message = f"the path is too long (at most {MAX_PATH} bytes, {MAX_NAME} between two slashes)"
    else:
        try:
            return os.path.normpath(Path.cwd() / base / Path(text).expanduser())
        except RuntimeError:
            message = f"{text!r}: no such user; write the folder in full"
    raise JobError([document.problem(field, message)])
