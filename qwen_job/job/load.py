"""Load a job: read its files, merge the layers, apply ``--set`` and replace variables."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_job.atomic import TooLarge, read_limited
from qwen_job.errors import EnvironmentFault, JobError, Problem
from qwen_job.job.build import build, spelt_out
from qwen_job.job.document import Document, assign, merge, parse
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.job import Job
from qwen_job.job.notify import SHELL_VARIABLE
from qwen_job.job.paths import STDIN
from qwen_job.job.sweep import points
from qwen_job.job.types import ENV_NAME

MAX_BYTES = 16 * 2**20
# Limit on the text that variables add, over all fields.
MAX_SUBSTITUTED = 16 * 2**20
_REFERENCE = re.compile(r"(\$?)\$\{([^{}]*)\}")
# $NAME as a part of a path. Where a shell, a pod or the model reads the text, it means something else.
_UNBRACED = re.compile(r"(?:^|(?<=[/:]))\$([A-Za-z_][A-Za-z0-9_]*)(?=[/:]|$)")
_READ_ELSEWHERE: tuple[FieldPath, ...] = (
    ("slurm", "setup"), ("env",), ("data", "system_prompt"), ("kubernetes", "annotations"), ("kubernetes", "job"),
    ("kubernetes", "pod"), ("kubernetes", "pod_container"), ("kubernetes", "prepare_pod"),
)  # fmt: skip


def load_job(
    files: Sequence[str | Path],
    *,
    sets: Iterable[str] = (),
    environ: Mapping[str, str] | None = None,
    under: Mapping[str, Any] | None = None,
) -> Job:
    """Load a job from its layers, lowest first; ``-`` is standard input.

    ``sets`` are ``field=value`` assignments, applied last. Every file overrides ``under``. ``environ`` (default: this
    process's) supplies the variables that ``uses_env`` declares. Relative paths are resolved against the folder of the
    file that contains them. The runs of a sweep are checked as well.

    Raises:
        EnvironmentFault: a file cannot be read.
        JobError: the job is invalid; lists all problems.
    """
    document = spelt_out(Document(copy.deepcopy(dict(under or {}))))
    for file in files:
        layer = parse(_read(file), STDIN if str(file) == "-" else str(file))
        document = merge(document, spelt_out(layer))
    for assignment in sets:
        assign(document, assignment)
        spelt_out(document)
    job = build(document, _substitute(document, os.environ if environ is None else environ))
    if job.sweep:
        job._points = points(job, document)
    return job


def _read(file: str | Path) -> str:
    name = STDIN if str(file) == "-" else str(file)
    try:
        data = _read_stdin() if name == STDIN else read_limited(file, MAX_BYTES, pipes=True)
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        hint = "" if Path(file).suffix in (".yaml", ".yml") else " (a job file ends in .yaml)"
        raise EnvironmentFault(f"{file}: no such file{hint}; 'qwen-job init' writes a job.yaml to start from") from None
    except IsADirectoryError:
        raise EnvironmentFault(f"{file}: this is a folder; name the job file in it") from None
    except OSError as error:
        raise EnvironmentFault(f"{name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise JobError([Problem(name, line, 1, "", "is not UTF-8 text; save it as UTF-8")]) from None
    except TooLarge as error:
        raise JobError([Problem(name, 0, 0, "", f"{error}: this is not a job file")]) from None
    except ValueError as error:
        raise EnvironmentFault(f"{name}: {error}") from None


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise ValueError("standard input is closed; name a file, or pipe the job in")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise TooLarge(MAX_BYTES)
    return data


def _substitute(document: Document, environ: Mapping[str, str]) -> list[Problem]:
    """Replace every ``${NAME}`` in place and return the problems found."""
    declared = document.value.get("uses_env")
    names = {name for name in declared if isinstance(name, str)} if isinstance(declared, list) else set()
    problems: list[Problem] = []
    left = MAX_SUBSTITUTED

    def visit(value: Any, path: FieldPath) -> Any:
        if isinstance(value, dict):
            return {key: visit(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [visit(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        if path[:1] == ("notify",) and SHELL_VARIABLE.fullmatch(value):
            return value  # its check names the right form; replaced, it would be the address itself
        unbraced = _UNBRACED.search(value)
        if unbraced and not any(path[: len(section)] == section for section in _READ_ELSEWHERE):
            name = unbraced[1]
            fix = f"write ${{{name}}} and add {name} to uses_env" + (" (or write ~)" if name == "HOME" else "")
            problems.append(document.problem(path, f"${name} would stay as typed, as a folder of that name: {fix}"))
        # setup lines are shell: braces there belong to the shell.
        if "${" not in value or path[:2] == ("slurm", "setup"):
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
            message = f"${{{name}}}: the variables add more than {MAX_SUBSTITUTED // 2**20} MiB; use a file instead"
        elif name in names:
            message = f"${{{name}}} is declared in uses_env but not set in this shell"
        elif not re.fullmatch(ENV_NAME, name):
            message = f"${{{name}}} is not a plain variable name; write ${{NAME}}, or ${found[0]} for the literal text"
        else:
            message = f"${{{name}}} is not declared; add {name} to uses_env, or write $${{{name}}} for the literal text"
        problems.append(document.problem(path, message))
        return found[0]

    document.value = visit(document.value, ())
    return problems
