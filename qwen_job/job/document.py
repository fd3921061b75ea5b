"""YAML text to plain values that remember where each one stood.

The scalars follow YAML 1.2's core schema, which is what people type: ``1e-5`` is a number, ``12:30:00`` and
``2026-11-23`` are text, ``yes``, ``no``, ``on`` and ``off`` are text too. (PyYAML's own rules are YAML 1.1, where the
first is text, the second an integer in base sixty and ``no`` is false.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from qwen_job.errors import JobError, Problem

try:
    from yaml import CSafeLoader as _Base
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _Base  # type: ignore[assignment]

Path = tuple[str | int, ...]
MAX_VALUES = 200_000


@dataclass(frozen=True)
class Position:
    """Where a value was written; ``line`` and ``column`` count from 1."""

    source: str
    line: int
    column: int


@dataclass
class Document:
    """A mapping with the position of every key and value in it."""

    value: dict[str, Any]
    positions: dict[Path, Position] = field(default_factory=dict)

    def position(self, path: Path) -> Position | None:
        """Return where ``path`` was written, or the nearest enclosing place that has a position."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]]
        return None


class _Loader(_Base):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_RULES = [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
]  # fmt: skip
for _tag, _pattern, _first in _RULES:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), [c.replace("\0", "") for c in _first]
    )


def parse_scalar(text: str) -> Any:
    """Read ``text`` as YAML: what ``--set field=text`` means."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(_first_line(error)) from None
    return None if node is None else _Reader("--set").read(node, ())


def parse(text: str, source: str) -> Document:
    """Read a YAML mapping. Errors: :class:`JobError` with file, line and column."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise JobError([Problem(source, line, column, "", f"invalid YAML: {_first_line(error)}")]) from None
    except yaml.YAMLError as error:
        raise JobError([Problem(source, 0, 0, "", f"invalid YAML: {_first_line(error)}")]) from None
    if node is None:
        raise JobError([Problem(source, 0, 0, "", "the file is empty; 'qwen-job init' writes one to start from")])
    if not isinstance(node, yaml.MappingNode):
        message = "expected 'field: value' lines; 'qwen-job init' writes a file to start from"
        raise JobError([Problem(source, 1, 1, "", message)])
    reader = _Reader(source)
    value = reader.read(node, ())
    if reader.problems:
        raise JobError(reader.problems)
    return Document(value, reader.positions)


def _first_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return " ".join(part for part in (error.context, error.problem) if part)
    return str(error).splitlines()[0]


class _Reader:
    """Turns nodes into values, noting positions; aliases are expanded within a budget."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[Path, Position] = {}
        self.problems: list[Problem] = []
        self._left = MAX_VALUES
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0 or node in self._open:
            why = "an alias that holds itself" if node in self._open else f"more than {MAX_VALUES} values"
            raise JobError([self._problem(node, path, f"{why}: write the values out")])
        self.positions.setdefault(path, self._position(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.pop()

    def _mapping(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self.problems.append(self._problem(key_node, path, "a field's name must be plain text"))
                continue
            if key in result:
                self.problems.append(self._problem(key_node, (*path, key), "written twice; keep one of the two"))
            inner = (*path, key)
            self.positions[inner] = self._position(key_node)
            result[key] = self.read(value_node, inner)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        kind = node.tag.rpartition(":")[2]
        text: str = node.value
        if node.tag == "!" or kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                special = {"inf": "inf", "nan": "nan"}.get(text.lower().lstrip("+-."))
                return float(text.replace(".", "", 1) if special else text)
        except ValueError:
            self.problems.append(self._problem(node, path, f"not a number: {text[:60]!r}"))
            return None
        self.problems.append(self._problem(node, path, f"the tag {node.tag!r} is not known here; remove it"))
        return None

    def _position(self, node: yaml.Node) -> Position:
        return Position(self.source, node.start_mark.line + 1, node.start_mark.column + 1)

    def _problem(self, node: yaml.Node, path: Path, message: str) -> Problem:
        at = self._position(node)
        return Problem(at.source, at.line, at.column, dotted(path), message)


def dotted(path: Path) -> str:
    """Write a path as users do: ``data.train[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text


def merge(base: Document, layer: Document) -> Document:
    """Lay ``layer`` over ``base``: mappings merge key by key, everything else is replaced."""
    merged = Document(_merge(base.value, layer.value), {})
    for document in (base, layer):
        for path, position in document.positions.items():
            if _exists(merged.value, path):
                merged.positions[path] = position
    return merged


def _merge(base: Any, layer: Any) -> Any:
    if isinstance(base, dict) and isinstance(layer, dict):
        return {**base, **{key: _merge(base.get(key), value) for key, value in layer.items()}}
    return layer


def _exists(value: Any, path: Path) -> bool:
    for part in path:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            return False
        value = value[part]
    return True


def assign(document: Document, assignment: str) -> None:
    """Carry out ``--set a.b=c`` (``a.0.b`` or ``a[0].b`` for a list's item). Errors: :class:`JobError`."""
    name, equals, text = assignment.partition("=")
    path: Path = tuple(int(p) if p.isdigit() else p for p in re.findall(r"[^.\[\]]+", name))
    if not equals or not path:
        raise JobError([Problem("--set", 0, 0, assignment, "write it as field=value, e.g. train.learning_rate=2e-5")])
    try:
        value = parse_scalar(text)
    except (ValueError, JobError) as error:
        raise JobError([Problem("--set", 0, 0, name, f"invalid YAML: {error}")]) from None
    target: Any = document.value
    for index, part in enumerate(path[:-1]):
        target = _step(target, part, path[: index + 1], create=True)
    if isinstance(target, list):
        _step(target, path[-1], path, create=False)
        target[int(path[-1])] = value
    else:
        target[str(path[-1])] = value
    for known in [p for p in document.positions if p[: len(path)] == path]:
        del document.positions[known]
    document.positions[path] = Position("--set", 0, 0)


def _step(target: Any, part: str | int, path: Path, *, create: bool) -> Any:
    if isinstance(target, list):
        if not isinstance(part, int) or part >= len(target):
            message = f"the list has {len(target)} items; name one by its number from 0"
            raise JobError([Problem("--set", 0, 0, dotted(path), message)])
        return target[part]
    part = str(part)
    if create and not isinstance(target.get(part), (dict, list)):
        if target.get(part) is not None and path != ("data",):
            message = f"is {target[part]!r}, which has no fields to set"
            raise JobError([Problem("--set", 0, 0, dotted(path), message)])
        target[part] = {}
    return target.get(part)
