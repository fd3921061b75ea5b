"""The ``sweep:`` section: a grid over any field, and a job for each of its points.

Every point is a whole job with its own folder below ``output``, named by its values, so that an extended grid finds
the finished runs.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

from qwen_job.errors import JobError, Problem
from qwen_job.job.build import build, spelt_out
from qwen_job.job.document import Document, Position, place
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.job import Axis, Job, Point, blame
from qwen_job.run.folder import PREPARED

# Slurm's MaxArraySize is 1001 unless the site raised it.
MOST = 1000
LONGEST_NAME = 120
# Limit on the values of all runs together: some seconds of work.
MOST_VALUES = 1_000_000
# Fields that a sweep sets itself, or that must be the same for all runs.
_FIXED = {
    "output": "every run gets its own folder below output",
    "name": "the runs are numbered automatically",
    "sweep": "a sweep cannot contain another sweep",
    "uses_env": "all runs use the same shell variables",
    "template_dirs": "all runs use the same templates",
}


def points(job: Job, document: Document) -> tuple[Point, ...]:
    """Return the jobs of the grid, the last field changing fastest.

    Raises:
        JobError: lists the problems of all runs.
    """
    axes = _axes(document)
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        message = f"makes {count} runs; at most {MOST} fit one array: sweep fewer values at once"
        raise JobError([job.problem(("sweep",), message)])
    if count * len(document.positions) > MOST_VALUES:
        message = f"makes {count} runs of {len(document.positions):,} values each; at most {MOST_VALUES:,} together"
        raise JobError([job.problem(("sweep",), message)])
    choices = list(itertools.product(*(range(len(axis.values)) for axis in axes)))
    names = _short_names([axis.field for axis in axes])
    found: list[Point] = []
    problems: list[Problem] = []
    for number, choice in enumerate(choices):
        values = {axis.field: axis.values[i] for axis, i in zip(axes, choice, strict=True)}
        folder = folder_name(dict(zip(names, values.values(), strict=True)))
        try:
            made = _run(_document_of(document, axes, choice), job, folder, number)
        except JobError as error:
            problems += [blame(problem, axes, choice, folder) for problem in error.problems]
            continue
        found.append(Point(folder, values, choice, axes, made))
    if problems:
        raise JobError(list(_once(problems)))
    return tuple(found)


def _axes(document: Document) -> tuple[Axis, ...]:
    """Read the section: ``a.b: [1, 2]`` and ``a: {b: [1, 2]}`` are the same."""
    axes: list[Axis] = []
    problems: list[Problem] = []

    def refuse(path: FieldPath, message: str) -> None:
        problems.append(document.problem(path, message))

    def visit(value: Any, path: FieldPath, field: str) -> None:
        top = re.split(r"[.\[]", field)[0]
        if top in _FIXED:
            refuse(path, f"cannot be swept: {_FIXED[top]}")
        elif isinstance(value, dict) and value:
            for key, inner in value.items():
                visit(inner, (*path, key), f"{field}.{key}")
        elif not isinstance(value, list) or not value:
            refuse(path, "expected a list of values, e.g. [1e-5, 2e-5]")
        elif len({_canonical(item) for item in value}) < len(value):
            refuse(path, "contains a value twice; remove one of them")
        elif field in (axis.field for axis in axes):
            refuse(path, "is swept twice; remove one of the two lists")
        else:
            axes.append(Axis(field, path, tuple(value)))

    for name, value in document.value["sweep"].items():
        visit(value, ("sweep", name), name)
    if problems:
        raise JobError(problems)
    return tuple(axes)


def _document_of(document: Document, axes: Sequence[Axis], choice: Sequence[int]) -> Document:
    value = {key: copy.deepcopy(item) for key, item in document.value.items() if key != "sweep"}
    made = Document(value, dict(document.positions))
    for axis, index in zip(axes, choice, strict=True):
        at = document.position((*axis.path, index)) or Position("job", 0, 0)
        place(made, axis.field, copy.deepcopy(axis.values[index]), at)
        spelt_out(made)
    return made


def _run(document: Document, whole: Job, folder: str, number: int) -> Job:
    """Build the job of one run; all runs share the folder for models and prepared data."""
    job = build(document)
    suffix = f"-{number}"
    return job.model_copy(
        update={
            "name": whole.name[: 63 - len(suffix)].rstrip("._-") + suffix,
            "output": str(PurePosixPath(whole.output, folder)),
            "model": job.model.model_copy(update={"cache_dir": job.model.cache_dir or whole.model_cache}),
            "data": job.data.model_copy(
                update={"cache_dir": job.data.cache_dir or str(PurePosixPath(whole.output, PREPARED))}
            ),
        }
    )


def _once(problems: Iterable[Problem]) -> Iterable[Problem]:
    """Return each problem once, even if several runs have it."""
    seen = set()
    for problem in problems:
        key = (problem.field, problem.message.partition(" (in the run ")[0])
        if key not in seen:
            seen.add(key)
            yield problem


def _short_names(fields: Sequence[str]) -> list[str]:
    """Return each field's shortest suffix that is unique among the fields."""
    parts = [re.findall(r"[^.\[\]]+", field) for field in fields]
    for count in range(1, max(map(len, parts)) + 1):
        names = [".".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(fields)


def folder_name(values: dict[str, Any]) -> str:
    """Return ``learning_rate=1e-05-seed=2``; values that do not fit a folder name add a hash of all values."""
    texts = {name: _text(value) for name, value in values.items()}
    safe = {name: re.sub(r"[^A-Za-z0-9._+-]+", "_", text.rsplit("/", 1)[-1]) for name, text in texts.items()}
    shown = "-".join(f"{re.sub('[^A-Za-z0-9._-]+', '_', name)}={text}" for name, text in safe.items())
    if safe == texts and len(shown) <= LONGEST_NAME:
        return shown
    digest = hashlib.sha256(_canonical(values).encode()).hexdigest()[:8]
    return f"{shown[: LONGEST_NAME - 9]}-{digest}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True)
