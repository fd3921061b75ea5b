"""Jinja for chat templates: compiled as transformers 5 does, so that equal messages give equal text.

The environment, its filters and globals are those of transformers' ``chat_template_utils``. Added is a limit: a
template that loops or multiplies for ever ends with an error. Each ``for`` adds the length of what it walks to a
count.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Sized
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_TURNS = 2_000_000  # of all loops of one rendering together: a second or two
_MAX_PRODUCT = 1 << 24
_COUNTED = "loop_limit"


class GenerationTag(Extension):
    """``{% generation %}``: what it encloses, as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block up to ``{% endgeneration %}``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Dict:
    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    def __init__(self, /, *args: Any, **values: Any) -> None:
        for name in (attributes := dict(*args, **values)):
            _refuse_hidden(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        super().__setitem__(name, value)


def _refuse_hidden(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no attribute with a leading underscore: {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Reject repetitions and powers that would fill the memory."""
        sizes = [len(value) if isinstance(value, Sized) else value for value in (left, right)]
        numbers = [abs(size) for size in sizes if isinstance(size, (int, float))]
        large = len(numbers) == 2 and (numbers[0] * numbers[1] > _MAX_PRODUCT or (operator == "**" and numbers[1] > 64))
        if large and (operator == "**" or sizes != [left, right]):
            raise SecurityError(f"{left!r:.20} {operator} {right!r:.20} is too large")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.Name(_COUNTED, "load", lineno=loop.lineno)
            loop.iter = nodes.Call(counted, [loop.iter], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree


class Program:
    """A compiled template. ``date``: what ``strftime_now`` calls now."""

    def __init__(self, text: str, date: datetime.datetime) -> None:
        self._left = 0
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": date.strftime,
            "dict": _Dict(),
            "namespace": _Namespace,
            _COUNTED: self._count,
        }
        self._template = environment.from_string(text)

    def render(self, values: dict[str, Any]) -> str:
        """Return the text for ``values``; raises what the template or Jinja raises."""
        self._left = MAX_TURNS
        return self._template.render(values)

    def _count(self, items: Any) -> Any:
        if isinstance(items, Sized):
            self._charge(len(items) + 1)
            return items
        # None and numbers are no iterables: Jinja raises what it always does.
        return self._each(items) if isinstance(items, Iterable) else items

    def _each(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._charge(1)
            yield item

    def _charge(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise TemplateError(f"loops more than {MAX_TURNS:,} times")


@lru_cache(maxsize=32)
def compiled(text: str, date: datetime.datetime) -> Program:
    """Compile a template, once per process.

    Raises:
        jinja2.TemplateSyntaxError: it is not a Jinja template.
    """
    return Program(text, date)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = None if separators is None else (separators[0], separators[1])
    return _encoder(bool(ensure_ascii), indent, pair, bool(sort_keys)).encode(value)


@lru_cache(maxsize=32)
def _encoder(
    ensure_ascii: bool, indent: int | str | None, separators: tuple[str, str] | None, sort_keys: bool
) -> json.JSONEncoder:
    # json.dumps makes a new one for each value.
    return json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


# What a template may raise: its own errors, Jinja's, and Python's inside expressions.
ERRORS: tuple[type[Exception], ...] = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip
