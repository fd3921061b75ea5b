"""The one Jinja environment. A template can print only what one of quote.py's filters has made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import (
    Environment,
    FileSystemBytecodeCache,
    FileSystemLoader,
    StrictUndefined,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
)

from qwen_job.errors import UsageError
from qwen_job.render import quote
from qwen_job.render.quote import Quoted, Unrepresentable

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


class Unquoted(TemplateError):
    """A template printed a value that went through no filter."""


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
    """Indent the lines of a quoted fragment; YAML only, since it would change a shell's here-document."""
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
    # slurm.setup is shell that the user wrote for the shell to run; nothing else may pass here.
    "verbatim_shell": _quoting("\n".join),
    "number": _quoting(lambda value: str(int(value))),
    "indented": _indent,
}


def _compiled() -> FileSystemBytecodeCache | None:
    """Return the user's cache of compiled templates, which take longer to compile than to render; None without one."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "qwen-job" / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return FileSystemBytecodeCache(str(folder)) if os.access(folder, os.W_OK) else None


@lru_cache(maxsize=8)
def _environment(folders: tuple[str, ...]) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([*folders, str(TEMPLATES)]),
        undefined=StrictUndefined,
        finalize=_only_quoted,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        bytecode_cache=_compiled(),
        autoescape=False,
    )
    environment.filters.update(FILTERS)
    return environment


def render_template(name: str, context: Mapping[str, Any], folders: Sequence[str | Path] = ()) -> str:
    """Render ``templates/NAME``; a file of the same name in one of ``folders`` comes first.

    Errors: :class:`UsageError` for a user's template that is wrong, with file and line.
    """
    environment = _environment(tuple(str(folder) for folder in folders))
    try:
        return environment.get_template(name).render(context)
    except Unrepresentable:
        raise
    except TemplateSyntaxError as error:
        raise UsageError(f"{error.filename}:{error.lineno}: {error.message}") from None
    except TemplateNotFound as error:
        raise UsageError(f"template {error.name}: not found; 'qwen-job templates list' names them") from None
    except TemplateError as error:
        raise UsageError(f"template {name}: {error.message}") from error
    except (TypeError, ValueError, RecursionError, OSError) as error:
        # A user's own template: not UTF-8, a filter on what it cannot take, one that includes itself.
        raise UsageError(f"template {name}: {error}") from error
