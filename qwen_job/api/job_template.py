"""Check the chat template that a job names, as far as this machine has it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qwen_job.atomic import TooLarge, read_limited
from qwen_job.errors import JobError, Problem
from qwen_job.facts import choices

if TYPE_CHECKING:
    from qwen_job.job import Job

_FIELD = ("data", "template")
_MAX_BYTES = 16 * 2**20


def check_template(job: Job) -> tuple[str, ...]:
    """Refuse a ``data.template`` that is no Jinja template; return a warning of each that this machine cannot read.

    Raises:
        JobError: names the field, also where a sweep wrote it.
    """
    warnings: list[str] = []
    paths = dict.fromkeys(one.data.template for one in (job, *(point.job for point in job.points)))
    faults = {path: _fault(path, warnings) for path in paths if path not in choices.NAMED_TEMPLATES}
    if problems := list(dict.fromkeys(_problems(job, faults))):
        raise JobError(problems)
    return tuple(warnings)


def _problems(job: Job, said: Mapping[str, str]) -> Iterator[Problem]:
    if message := said.get(job.data.template):
        yield job.problem(_FIELD, message)
        return
    for point in job.points:
        if message := said.get(point.job.data.template):
            yield point.blame(point.job.problem(_FIELD, message))


def _fault(path: str, warnings: list[str]) -> str:
    """Return what is wrong with a template file, empty if nothing is known to be; add to ``warnings`` if unread."""
    try:
        return _syntax(path, read_limited(path, _MAX_BYTES).decode())
    except IsADirectoryError:
        return f"{path}: is a folder; write the file in it, auto or chatml"
    except UnicodeDecodeError:
        return f"{path}: is not UTF-8 text; write a Jinja template"
    except TooLarge as error:
        return f"{path}: {error}: this is no chat template"
    except ValueError as error:
        return f"{path}: {error}; write a Jinja file, auto or chatml"
    except OSError as error:
        warnings.append(f"data.template: {path}: this machine cannot read it ({error.strerror}), so it is not checked")
        return ""


def _syntax(path: str, text: str) -> str:
    from qwen_job.chat.sandbox import ERRORS, compiled

    try:
        compiled(text, datetime.datetime.min)
    except ERRORS as error:
        line = getattr(error, "lineno", None)
        where = f"{path}:{line}" if line else path
        said = str(error).rstrip(".")
        return f"{where}: is no Jinja template: {said}; correct it, or write another file, auto or chatml"
    return ""
