"""Build a :class:`Job` from a document: short forms, validation, settings and paths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from qwen_job.errors import JobError, Problem
from qwen_job.facts import train_settings as settings
from qwen_job.facts.lookup import UnknownName
from qwen_job.facts.model_names import clean_name
from qwen_job.facts.model_shapes import full_name, known_spelling
from qwen_job.facts.train_settings import Complaint
from qwen_job.facts.untrained import why_untrained
from qwen_job.job.document import Document, dotted
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.job import Job
from qwen_job.job.mistakes import problems_of
from qwen_job.job.model import Train
from qwen_job.job.paths import resolve_paths

# No field takes a whole number over 64 bits.
MAX_NUMBER = 2**64 - 1
# Values in these sections are text and stay as typed: VERSION: 1.10 is not 1.1.
_TEXT_SECTIONS: tuple[FieldPath, ...] = (
    ("env",), ("slurm", "sbatch"), ("slurm", "srun"),
    ("kubernetes", "labels"), ("kubernetes", "annotations"), ("kubernetes", "node_selector"),
)  # fmt: skip
_SHORT: dict[str, tuple[str, tuple[type, ...]]] = {"model": ("name", (str,)), "data": ("train", (str, list))}


def build(document: Document, problems: Iterable[Problem] = ()) -> Job:
    """Build the job from a document whose variables have been replaced.

    Raises:
        JobError: lists all problems, ``problems`` included.
    """
    if too_large := _check_numbers(document):
        raise JobError([*problems, *too_large])
    job, found = _validate(document)
    found = [*problems, *found, *_check_settings(document, job), *_check_evaluate(document, job)]
    if found or job is None:
        raise JobError(_ordered(found))
    job = resolve_paths(_with_clean_name(job, document), document)
    job._document = document
    return job


def spelt_out(layer: Document) -> Document:
    """Expand short forms in place (``model: x`` to ``{name: x}``), so that layers and ``--set`` can add to them.

    An empty section (all its lines are comments, say) counts as absent.
    """
    for section, (field, kinds) in _SHORT.items():
        short = layer.value.get(section)
        if isinstance(short, kinds):
            moved = {path: at for path, at in layer.positions.items() if path[:1] == (section,)}
            layer.positions |= {(section, field, *path[1:]): at for path, at in moved.items()}
            layer.value[section] = {field: short}
    for path, text in layer.texts.items():
        if path[:-1] in _TEXT_SECTIONS or _sweeps_text(path):
            _at(layer.value, path[:-1])[path[-1]] = text
    for name, field_info in Job.model_fields.items():
        if layer.value.get(name, "") is None and field_info.default is not None and not field_info.is_required():
            del layer.value[name]
    return layer


def _sweeps_text(path: FieldPath) -> bool:
    """Return whether ``path`` is a value that a sweep gives to a text field."""
    swept = ".".join(part for part in path[1:] if isinstance(part, str))
    sections = [dotted(section) for section in _TEXT_SECTIONS]
    return path[:1] == ("sweep",) and swept.startswith(tuple(f"{name}{sign}" for name in sections for sign in ".["))


def _at(value: Any, path: FieldPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _validate(document: Document) -> tuple[Job | None, list[Problem]]:
    try:
        return Job.model_validate(document.value), []
    except ValidationError as error:
        return None, problems_of(error, document)


def _check_numbers(document: Document) -> list[Problem]:
    """Return a problem for each whole number that is too large; text keeps its digits."""
    problems: list[Problem] = []

    def visit(value: Any, path: FieldPath) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                visit(item, (*path, index))
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            message = f"{str(value)[:20]}... is too large: at most {MAX_NUMBER}"
            problems.append(document.problem(path, message))

    visit(document.value, ())
    return problems


def _check_settings(document: Document, job: Job | None) -> list[Problem]:
    """Check the untyped settings under train one by one; if all are valid, check how they combine."""
    written = document.value.get("train")
    if not isinstance(written, dict):
        return []
    complaints = [
        Complaint(name, message)
        for name, value in written.items()
        if name not in Train.model_fields and (message := settings.fault(name, value, Train.model_fields))
    ]
    if job is not None and not complaints:
        held_out = settings.Circumstances(evaluates=bool(job.data.eval or job.data.eval_split))
        complaints = settings.conflicts(job.train.settings, written, held_out)
    return [document.problem(("train", *name.split(".")), message) for name, message in complaints]


def _check_evaluate(document: Document, job: Job | None) -> list[Problem]:
    """Return a problem for an evaluation that has neither data nor a suite."""
    if job is None or job.evaluate is None or job.evaluate.data or job.evaluate.suite:
        return []
    if job.data.eval or job.data.eval_split:
        return []
    message = (
        "is required because nothing is held out: name conversations that are not in the training data, write "
        "data.eval or data.eval_split, or set evaluate.suite"
    )
    return [document.problem(("evaluate", "data"), message)]


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda p: (p.source, p.line, p.column, p.field))


def _with_clean_name(job: Job, document: Document) -> Job:
    """Return the job with its hub id in full, without a prefix such as ``modelscope://``; paths stay as they are."""
    if job.model.resolved_source == "local":
        return job
    name = job.model.name
    try:
        if job.model.resolved_source != "random" and "/" not in name.strip():
            name = full_name(name)
        name = clean_name(name, job.model.source)
        if job.model.resolved_source != "random":
            name = known_spelling(name)
    except UnknownName as error:
        raise JobError([document.problem(("model", "name"), why_untrained(name) or str(error))]) from None
    except ValueError as error:
        raise JobError([document.problem(("model", "name"), str(error))]) from None
    return job.model_copy(update={"model": job.model.model_copy(update={"name": name})})
