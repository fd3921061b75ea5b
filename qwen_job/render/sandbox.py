"""A sandbox for users' own templates: they can only print, with no access to Python, and limited time and memory.

- ``render_apart``: renders a template in a separate process
- ``words_of``: the file, line and message of a template's error

A job.yaml can name templates (template_dirs), which must not run programs on the machine that renders it.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from qwen_job.errors import UsageError

CPU_SECONDS = 3
MEMORY = 512 * 2**20
MAX_OUTPUT = 16 * 2**20
MAX_RANGE = 10_000
MAX_PRODUCT = 2**20
_MAX_BITS = 1024
# The filters of Jinja that a layout needs; none of them inspects objects or is random.
KEPT_FILTERS = frozenset(
    {
        *("abs", "batch", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int"),
        *("items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace"),
        *("reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "trim"),
        *("truncate", "unique", "upper"),
    }
)
_PLAIN = (str, dict, list, tuple, int, float)


class TakesTooLong(Exception):
    """A template used up its processor time."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Attributes and items of plain values, their methods, macros and loops; no other call."""

    intercepted_binops = frozenset(("*", "**"))

    def is_safe_callable(self, obj: Any) -> bool:
        """Let a template call its macros and blocks, ``range``, and the methods of plain values."""
        if obj is limited_range or obj is Namespace or isinstance(obj, (Macro, BlockReference, LoopContext)):
            return True
        owner = getattr(obj, "__self__", None)
        if isinstance(obj, types.BuiltinMethodType):
            return isinstance(owner, _PLAIN)
        return isinstance(obj, types.MethodType) and isinstance(owner, LoopContext)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Hide names with a leading underscore, and everything except data and plain methods."""
        return super().is_safe_attribute(obj, attr, value) and not isinstance(value, (type, types.ModuleType))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Reject products and powers that would fill the memory."""
        check_product(operator, left, right)
        return super().call_binop(context, operator, left, right)


def check_product(operator: str, left: Any, right: Any) -> None:
    """Reject ``left * right`` and ``left ** right`` with a result that is too large.

    Raises:
        SecurityError: names the limit.
    """
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int) and len(one) * other > MAX_PRODUCT:
            raise SecurityError(f"makes more than {MAX_PRODUCT:,} items by '*'")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 1) if operator == "**" else 1)
        if bits > _MAX_BITS:
            raise SecurityError(f"makes a number of more than {_MAX_BITS} bits by {operator!r}")


def limited_range(*arguments: int) -> range:
    """Return range(...).

    Raises:
        SecurityError: for a range that is too long.
    """
    made = range(*arguments)
    if made[MAX_RANGE:]:
        raise SecurityError(f"range() of more than {MAX_RANGE:,} items")
    return made


def restrict(environment: Sandbox) -> Sandbox:
    """Keep only ``range`` and ``namespace`` of Jinja's globals, and the filters that a layout needs."""
    environment.globals = {"range": limited_range, "namespace": Namespace}
    for name in set(environment.filters) - KEPT_FILTERS:
        del environment.filters[name]
    return environment


def render_apart(render: Callable[[], str], name: str) -> str:
    """Call ``render`` in a separate process with limits, and raise its error here.

    Raises:
        UsageError: when the template takes too much time or memory, or prints too much.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        _be_apart(render, name, write)
    os.close(write)
    with io.FileIO(read) as stream:
        pieces, size = [], 0
        while size <= 2 * MAX_OUTPUT and (piece := stream.read(2**20)):
            pieces.append(piece)
            size += len(piece)
    _, status = os.waitpid(child, 0)
    try:
        result = pickle.loads(b"".join(pieces))
    except (pickle.UnpicklingError, EOFError, ValueError):
        how = os.waitstatus_to_exitcode(status)
        raise UsageError(f"template {name}: takes over {CPU_SECONDS} s or {MEMORY // 2**20} MiB ({how})") from None
    if isinstance(result, Exception):
        raise result
    return str(result)


def _be_apart(render: Callable[[], str], name: str, write: int) -> NoReturn:
    try:
        _limit()
        text = render()
        result: str | Exception = text
        if len(text.encode()) > MAX_OUTPUT:
            result = UsageError(f"template {name}: prints more than {MAX_OUTPUT // 2**20} MiB")
    except UnicodeEncodeError:
        result = UsageError(f"template {name}: prints half a character (a lone surrogate)")
    except Exception as error:
        result = error
    try:
        _unlimit()
        data = pickle.dumps(result)
        with io.FileIO(write, "w") as stream:
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) or 0 :]
    finally:
        os._exit(0)


def _limit() -> None:
    def stop(*_: object) -> NoReturn:
        raise TakesTooLong

    signal.signal(signal.SIGXCPU, stop)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    soft = int(used) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, soft + 1))
    with open("/proc/self/statm", "rb") as stream:  # noqa: PTH123
        size = int(stream.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY if hard < 0 else min(size + MEMORY, hard), hard))


def _unlimit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def words_of(error: BaseException, name: str, is_template: Callable[[str], bool]) -> str:
    """Return ``FILE:LINE: what is wrong`` for a template's error; ``is_template`` recognizes template files."""
    if isinstance(error, TemplateSyntaxError):
        return f"{error.filename or name}:{error.lineno}: {error.message}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_template(f.filename)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else f"template {name}"
    if isinstance(error, TakesTooLong):
        return f"{where}: takes over {CPU_SECONDS} s of processor time"
    if isinstance(error, MemoryError):
        return f"{where}: takes over {MEMORY // 2**20} MiB of memory"
    message = error.message if isinstance(error, TemplateError) and error.message else str(error)
    return f"{where}: {message.splitlines()[0] if message else type(error).__name__}"
