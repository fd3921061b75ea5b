"""Files, layers and ``--set`` to one checked :class:`Job`, or every problem at once."""

from __future__ import annotations

import os
import re
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from qwen_job.atomic import TooLarge, read_limited
from qwen_job.errors import EnvironmentFault, JobError, Problem
from qwen_job.facts import settings
from qwen_job.facts.model_names import clean_name
from qwen_job.facts.settings import Complaint
from qwen_job.job.document import Document, Position, assign, dotted, merge, parse
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.model import Job, Train
from qwen_job.job.types import ENV_NAME
from qwen_job.text import did_you_mean

MAX_BYTES = 16 * 2**20
# Of text that variables bring in, in all fields together.
MAX_SUBSTITUTED = 16 * 2**20
# Whole numbers beyond 64 bits fit no field, and none of what they are handed to.
MAX_NUMBER = 2**64 - 1
# Linux's own limits, less what we write below a folder.
MAX_PATH, MAX_NAME = 3_800, 255
# A user mends a few at a time, and looking for suggestions takes time for each.
_MOST_PROBLEMS = 200
STDIN = "job.yaml (stdin)"
# What is text there stays as it was typed: VERSION: 1.10 is not 1.1.
_TEXT_SECTIONS: tuple[FieldPath, ...] = (
    ("env",), ("slurm", "sbatch"), ("slurm", "srun"),
    ("kubernetes", "labels"), ("kubernetes", "annotations"), ("kubernetes", "node_selector"),
)  # fmt: skip
_SHORT: dict[str, tuple[str, tuple[type, ...]]] = {"model": ("name", (str,)), "data": ("train", (str, list))}
_TYPE_TAG = r"[A-Z]\w+$|function-|constrained-|(str|int|float|bool|dict|list)(\[|$)"
_EXPECTED = "expected "
_NOUNS = {
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "'field: value' lines",
    "model_type": "'field: value' lines",
}  # fmt: skip
_REFERENCE = re.compile(r"(\$?)\$\{([^{}]*)\}")


def load_job(
    files: Sequence[str | Path],
    *,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    under: Mapping[str, Any] | None = None,
) -> Job:
    """Load a job from its layers, lowest first; ``-`` is standard input.

    ``sets`` are ``field=value`` assignments carried out last; ``under`` lies below all files. ``environ`` (default:
    this process's) supplies the variables that ``uses_env`` declares. Relative paths are resolved against the file that
    wrote them. The runs of a sweep are checked, too.

    Errors: :class:`EnvironmentFault` for a file that cannot be read, :class:`JobError` with all problems otherwise.
    """
    document = Document(dict(under or {}))
    for file in files:
        layer = parse(_read(file), STDIN if str(file) == "-" else str(file))
        document = merge(document, spelt_out(layer))
    for assignment in sets:
        assign(document, assignment)
        spelt_out(document)
    problems = _substitute(document, os.environ if environ is None else environ)
    job = build(document, problems)
    if job.sweep:
        from qwen_job.job.sweep import points

        job._points = points(job, document)
    return job


def build(document: Document, problems: Iterable[Problem] = ()) -> Job:
    """Make the job of a document whose variables are replaced. Errors: :class:`JobError`, ``problems`` among them."""
    if too_large := _check_numbers(document):
        raise JobError([*problems, *too_large])
    job, more = _validate(document)
    found = [*problems, *more, *_check_settings(document, job)]
    if found or job is None:
        raise JobError(_ordered(found))
    job = _resolve_paths(job, document)
    job._document = document
    return job


def spelt_out(layer: Document) -> Document:
    """Write short forms in full (``model: x`` as ``{name: x}``), so that layers and ``--set`` add to them.

    A section with nothing below it, as when all its lines are comments, counts as not written.
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
    """Tell whether ``path`` is a value that a sweep gives to a field of text."""
    swept = ".".join(part for part in path[1:] if isinstance(part, str))
    sections = [dotted(section) for section in _TEXT_SECTIONS]
    return path[:1] == ("sweep",) and swept.startswith(tuple(f"{name}{sign}" for name in sections for sign in ".["))


def _at(value: Any, path: FieldPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _read(file: str | Path) -> str:
    name = STDIN if str(file) == "-" else str(file)
    try:
        data = _of_stdin() if name == STDIN else read_limited(file, MAX_BYTES, pipes=True)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        hint = "" if Path(file).suffix in (".yaml", ".yml") else " (a job file ends in .yaml)"
        raise EnvironmentFault(f"{file}: no such file{hint}; 'qwen-job init' writes a job.yaml to start from") from None
    except IsADirectoryError:
        raise EnvironmentFault(f"{file}: is a folder; name the job file in it") from None
    except OSError as error:
        raise EnvironmentFault(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobError([Problem(name, line, 1, "", "is not UTF-8 text; save it as UTF-8")]) from None
    except TooLarge as error:
        raise JobError([Problem(name, 0, 0, "", f"{error}: this is not a job file")]) from None
    except ValueError as error:
        raise EnvironmentFault(f"{name}: {error}") from None


def _of_stdin() -> bytes:
    if sys.stdin is None:
        raise ValueError("is closed; name a file, or send the job through a pipe")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TooLarge(MAX_BYTES)
    return data


def _substitute(document: Document, environ: Mapping[str, str]) -> list[Problem]:
    declared = document.value.get("uses_env")
    names = {name for name in declared if isinstance(name, str)} if isinstance(declared, list) else set()
    problems: list[Problem] = []
    left = MAX_SUBSTITUTED

    def visit(value: Any, path: FieldPath) -> Any:
        if isinstance(value, dict):
            return {key: visit(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item, (*path, index)) for index, item in enumerate(value)]
        # setup lines are shell: what stands in braces there is the shell's business.
        if not isinstance(value, str) or "${" not in value or path[:2] == ("slurm", "setup"):
            return value
        return _REFERENCE.sub(lambda found: replace(found, path), value)

    def replace(found: re.Match[str], path: FieldPath) -> str:
        nonlocal left
        name = found[2]
        if found[1]:
            return found[0][1:]
        if name in names and name in environ:
            left -= len(environ[name])
            if left >= 0:
                return environ[name]
            message = f"${{{name}}}: the variables bring in more than {MAX_SUBSTITUTED // 2**20} MiB; put it in a file"
        elif name in names:
            message = f"${{{name}}} is declared in uses_env but not set in this shell"
        elif not re.fullmatch(ENV_NAME, name):
            message = f"${{{name}}} is more than a variable's name; write ${{NAME}}, or ${found[0]} for the text itself"
        else:
            message = f"${{{name}}} is not declared; add {name} to uses_env, or write $${{{name}}} for the text itself"
        problems.append(_problem(document, path, message))
        return found[0]

    document.value = visit(document.value, ())
    return problems


def _validate(document: Document) -> tuple[Job | None, list[Problem]]:
    try:
        return Job.model_validate(document.value), []
    except ValidationError as error:
        items = error.errors(include_url=False)
        found = _without_alternatives([_translate(document, item) for item in items[:_MOST_PROBLEMS]])
        if len(items) > _MOST_PROBLEMS:
            more = f"{len(items) - _MOST_PROBLEMS:,} more problems are shown when these are mended"
            found.append(found[-1]._replace(field="", message=more))
        return None, found


def _check_numbers(document: Document) -> list[Problem]:
    """Refuse whole numbers that fit no field, wherever they stand; what is text keeps its digits."""
    problems: list[Problem] = []

    def visit(value: Any, path: FieldPath) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                visit(item, (*path, index))
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            message = f"{str(value)[:20]}... is too large a number: at most {MAX_NUMBER}"
            problems.append(_problem(document, path, message))

    visit(document.value, ())
    return problems


def _without_alternatives(problems: list[Problem]) -> list[Problem]:
    """Of a value that may be of several types, keep one problem: what is wrong inside it, or all types in one."""
    kept: list[Problem] = []
    for problem in problems:
        others = [p for p in problems if p is not problem]
        if problem.message.startswith(_EXPECTED):
            if any(p.field.startswith((f"{problem.field}.", f"{problem.field}[")) for p in others):
                continue
            same = [p for p in problems if p.field == problem.field and p.message.startswith(_EXPECTED)]
            if problem is not same[0]:
                continue
            _, _, given = problem.message.partition(", not ")
            kinds = [p.message.removeprefix(_EXPECTED).partition(", not ")[0] for p in same]
            problem = problem._replace(message=f"{_EXPECTED}{' or '.join(dict.fromkeys(kinds))}, not {given}")
        kept.append(problem)
    return kept


def _translate(document: Document, error: Any) -> Problem:
    path = tuple(part for part in error["loc"] if part != "[key]")
    path = _without_union_tags(document.value, path)
    given = error.get("input")
    context = error.get("ctx") or {}
    kind = error["type"]
    if kind == "extra_forbidden":
        return _problem(document, path, "unknown field" + _did_you_mean(path))
    if kind == "missing":
        # A missing field has no place of its own: point at the section that lacks it.
        at = document.position(path[:-1]) or Position("job", 0, 0)
        return Problem(at.source, at.line, at.column, dotted(path), f"is required{_example(path)}")
    if kind == "value_error":
        message = str(context.get("error", error["msg"]))
    elif kind == "string_pattern_mismatch":
        message = f"{_show(given)} has a form that is not allowed{_example(path)}"
    elif kind == "literal_error":
        message = f"{_show(given)} is not one of {context['expected']}"
        message += did_you_mean(given, re.findall(r"'([^']+)'", context["expected"]))
    elif kind in _NOUNS:
        message = f"{_EXPECTED}{_NOUNS[kind]}, not {_show(given)}"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}, not {_show(given)}"
    return _problem(document, path, message)


def _without_union_tags(value: Any, path: FieldPath) -> FieldPath:
    """Drop the parts of pydantic's path that name a type (``CustomGpu``) rather than a field."""
    kept: list[str | int] = []
    for part in path:
        written = isinstance(value, dict) and part in value
        if isinstance(part, str) and not written and re.match(_TYPE_TAG, part):
            continue
        kept.append(part)
        value = value.get(part) if isinstance(value, dict) else None
    return tuple(kept)


def _example(path: FieldPath) -> str:
    model = _section(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    return f" ({field.description})" if field is not None and field.description else ""


def _did_you_mean(path: FieldPath) -> str:
    model = _section(path[:-1])
    if model is None:
        return ""
    name = str(path[-1])
    above = dotted(path[:-1])
    if meant := did_you_mean(name, model.model_fields, f"{above}." if above else ""):
        return meant
    for section, field in Job.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return f"; did you mean '{section}.{name}'?"
    return f"; known here: {', '.join(sorted(model.model_fields))}"


def _section(path: FieldPath) -> type[BaseModel] | None:
    """Return the model that describes the mapping at ``path``, None where keys are free."""
    model: Any = Job
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = next((m for m in _models(field.annotation) if m), None) if field else None
        if model is None:
            return None
    return model  # type: ignore[no-any-return]


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models(argument)]


def _check_settings(document: Document, job: Job | None) -> list[Problem]:
    """Judge the settings under train that are not typed, then all of them together once each is fine by itself."""
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
    return [_problem(document, ("train", *name.split(".")), message) for name, message in complaints]


_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxlist = _SHORT_REPR.maxdict = 20
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 100
_SHORT_REPR.maxlong = 400


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else _SHORT_REPR.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _problem(document: Document, path: FieldPath, message: str) -> Problem:
    at = document.position(path) or Position("job", 0, 0)
    return Problem(at.source, at.line, at.column, dotted(path), message)


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(dict.fromkeys(problems), key=lambda p: (p.source, p.line, p.column, p.field))


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def _resolve_paths(job: Job, document: Document) -> Job:
    def absolute(text: str, *path: str | int) -> str:
        position = document.position(path)
        source = position.source if position else ""
        # What has no folder of its own (--set, stdin, a pipe such as <(...)) is read from where we stand.
        elsewhere = source in ("", "--set", STDIN) or source.startswith(("/dev/", "/proc/"))
        base = Path() if elsewhere else Path(source).parent
        if scheme := _SCHEME.match(text):
            message = f"{scheme[0]} is not read from: copy it to storage that the job sees, and write that path"
            raise JobError([_problem(document, path, message)])
        if len(os.fsencode(text)) > MAX_PATH or max(len(os.fsencode(part)) for part in text.split("/")) > MAX_NAME:
            message = f"is longer than a path may be ({MAX_PATH} bytes, {MAX_NAME} between two slashes)"
            raise JobError([_problem(document, path, message)])
        try:
            return os.path.normpath(Path.cwd() / base / Path(text).expanduser())
        except RuntimeError:
            message = f"{text!r}: there is no such user; write the folder in full"
            raise JobError([_problem(document, path, message)]) from None

    def files(name: str) -> list[Any]:
        items = getattr(job.data, name)
        return [f.model_copy(update={"path": absolute(f.path, "data", name, i)}) for i, f in enumerate(items)]

    data = job.data.model_copy(update={"train": files("train"), "eval": files("eval")})
    if data.cache_dir:
        data = data.model_copy(update={"cache_dir": absolute(data.cache_dir, "data", "cache_dir")})
    model = job.model
    if model.resolved_source == "local":
        model = model.model_copy(update={"name": absolute(model.name, "model", "name")})
    else:
        try:
            model = model.model_copy(update={"name": clean_name(model.name, model.source)})
        except ValueError as error:
            raise JobError([_problem(document, ("model", "name"), str(error))]) from None
    if model.cache_dir:
        model = model.model_copy(update={"cache_dir": absolute(model.cache_dir, "model", "cache_dir")})
    changed: dict[str, Any] = {"data": data, "model": model, "output": absolute(job.output, "output")}
    if job.template_dirs:
        changed["template_dirs"] = [absolute(d, "template_dirs", i) for i, d in enumerate(job.template_dirs)]
    if job.evaluate and job.evaluate.data:
        own = absolute(job.evaluate.data, "evaluate", "data")
        changed["evaluate"] = job.evaluate.model_copy(update={"data": own})
    return job.model_copy(update=changed)
