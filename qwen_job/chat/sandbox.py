"""Jinja for chat templates: compiled as transformers 5 does, so that equal messages give equal text.

The environment, its filters and globals are those of transformers' ``chat_template_utils``. Added is a limit: a
template that loops or multiplies for ever ends with an error. Each ``for`` adds the length of what it walks to a
count; :mod:`qwen_job.chat.bounds` has the limits of sizes.
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
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from qwen_job.chat.bounds import METHODS, bounded, bounded_filter, joined, refuse_call, refuse_operation

MAX_TURNS = 2_000_000  # of all loops of one rendering together: a second or two
_COUNTED, _BOUNDED = "loop_limit", "size_limit"


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
    intercepted_binops = frozenset(("*", "**", "%"))
    concat = staticmethod(joined)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Decide as Jinja does, once for each attribute of a type: most of what templates read."""
        kind: Any = type(obj)
        return _is_safe(kind, attr) if kind in _USUAL else super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Reject operations that would fill the memory."""
        refuse_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        """Reject calls that would fill the memory; the names are Jinja's, so that none hides an argument."""
        if getattr(__obj, "__name__", None) in METHODS:
            arguments = refuse_call(__obj, arguments, named)
        return super().call(__context, __obj, *arguments, **named)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.Name(_COUNTED, "load", lineno=loop.lineno)
            loop.iter = nodes.Call(counted, [loop.iter], [], None, None, lineno=loop.lineno)
        _Measured().visit(tree)
        tree.set_environment(self)
        return tree


# Of these types, the attribute's name alone decides.
_USUAL: dict[type[Any], Any] = {
    str: "",
    dict: {},
    list: [],
    tuple: (),
    LoopContext: LoopContext((), undefined=jinja2.Undefined, recurse=None),
    _Namespace: _Namespace(),
}


@lru_cache(maxsize=1024)
def _is_safe(kind: Any, attr: str) -> bool:
    return ImmutableSandboxedEnvironment().is_safe_attribute(_USUAL[kind], attr, None)


class _Measured(NodeTransformer):
    """Measures what can grow again and again: what ``set`` keeps and what calls are given."""

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.node, nodes.Expr):
            node.node = _filtered(node.node)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.args = [each if isinstance(each, _KEPT) else _filtered(each) for each in node.args]
        for named in node.kwargs:
            named.value = named.value if isinstance(named.value, _KEPT) else _filtered(named.value)
        return node


# What is measured already.
_KEPT = (nodes.Name, nodes.Const, nodes.TemplateData)


def _filtered(value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, _BOUNDED, [], [], None, None, lineno=value.lineno)


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
        environment.filters = {name: bounded_filter(name, each) for name, each in environment.filters.items()}
        environment.filters[_BOUNDED] = bounded
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
