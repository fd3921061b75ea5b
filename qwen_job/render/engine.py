"""The one Jinja environment. A template can print only the output of the filters in quote.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemBytecodeCache,
    FileSystemLoader,
    FunctionLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
)
from jinja2.loaders import split_template_path

from qwen_job.atomic import read_limited
from qwen_job.errors import UsageError
from qwen_job.render import quote
from qwen_job.render.quote import Quoted, Unrepresentable
from qwen_job.resources import private_cache

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MAX_TEMPLATE = 2**20


class Unquoted(TemplateError):
    """A template printed a value without a filter."""


def _only_quoted(value: Any) -> Any:
    if not isinstance(value, Quoted):
        raise Unquoted(
            f"prints {str(value)[:60]!r} unquoted; pipe it through sh, sbatch, yaml, json, comment or heredoc"
        )
    return value


def _quoting(function: Any) -> Any:
    def filter_(value: Any, *args: Any, **kwargs: Any) -> Quoted:
        return Quoted(function(value, *args, **kwargs))

    return filter_


def _indent(text: Quoted, width: int) -> Quoted:
    """Indent the lines of a quoted fragment; YAML only, because it would change a here-document."""
    return Quoted(_only_quoted(text).replace("\n", "\n" + " " * width).rstrip(" "))


FILTERS = {
    "sh": _quoting(quote.sh),
    "words": _quoting(quote.sh_words),
    "sbatch": _quoting(quote.sbatch),
    "comment": _quoting(quote.shell_comment),
    "heredoc": _quoting(quote.heredoc),
    "yaml": _quoting(lambda value: quote.to_yaml(value).rstrip("\n")),
    "json": _quoting(quote.to_yaml_inline),
    "hostfile_line": _quoting(quote.hostfile_line),
    # Only for slurm.setup, which is shell code of the user, to be run by the shell.
    "verbatim_shell": _quoting("\n".join),
    "number": _quoting(lambda value: str(int(value))),
    "indented": _indent,
}


def _compiled() -> FileSystemBytecodeCache | None:
    """Return the cache of compiled templates, since compiling takes longer than rendering; None without a cache."""
    folder = private_cache() / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return FileSystemBytecodeCache(str(folder)) if os.access(folder, os.W_OK) else None


_SETTINGS: dict[str, Any] = {
    "undefined": StrictUndefined,
    "finalize": _only_quoted,
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
    "autoescape": False,
}


@lru_cache(maxsize=1)
def _ours() -> Environment:
    environment = Environment(loader=FileSystemLoader(str(TEMPLATES)), bytecode_cache=_compiled(), **_SETTINGS)
    environment.filters.update(FILTERS)
    return environment


@lru_cache(maxsize=8)
def _theirs(folders: tuple[str, ...]) -> Environment:
    """Return the environment for a user's own templates, whose compiled form is not cached."""
    from qwen_job.render.sandbox import Sandbox, restrict

    loader = FunctionLoader(lambda name: _source(name, folders))
    environment = restrict(Sandbox(loader=loader, **_SETTINGS))
    environment.filters.update(FILTERS)
    return environment


def _source(name: str, folders: Sequence[str]) -> tuple[str, str, None] | None:
    """Return the text and file of a template: the first of ``folders`` that has it, else ours."""
    parts = split_template_path(name)
    for folder in (*folders, str(TEMPLATES)):
        path = Path(folder, *parts)
        try:
            return read_limited(path, MAX_TEMPLATE).decode("utf-8-sig"), str(path), None
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: is not UTF-8 text: save it as UTF-8") from None
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from None
    return None


def render_template(name: str, context: Mapping[str, Any], folders: Sequence[str | Path] = ()) -> str:
    """Render ``templates/NAME``; a file of the same name in one of ``folders`` replaces it, and is not trusted.

    Raises:
        UsageError: for a faulty template of the user, with file and line.
    """
    chosen = tuple(str(folder) for folder in folders)
    if not chosen:
        return _render(_ours, name, context, ())
    from qwen_job.render.sandbox import render_apart

    return render_apart(lambda: _render(lambda: _theirs(chosen), name, context, chosen), name)


def _render(environment: Callable[[], Environment], name: str, context: Mapping[str, Any], folders: Any) -> str:
    try:
        return environment().get_template(name).render(context)
    except (Unrepresentable, UsageError):
        raise
    except TemplateNotFound as error:
        raise UsageError(f"template {error.name}: not found; 'qwen-job templates list' shows all names") from None
    except Exception as error:
        # A user's own template: a filter on a wrong type, a template that includes itself, an endless loop.
        from qwen_job.render.sandbox import words_of

        ours = (*folders, str(TEMPLATES))
        raise UsageError(words_of(error, name, lambda file: file.startswith(ours))) from error
