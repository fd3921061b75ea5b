"""Parse YAML into plain values, with the position of each one.

The scalars follow YAML 1.2's core schema, which is what people type: ``1e-5`` is a number, ``12:30:00`` and
``2026-11-23`` are text, ``yes``, ``no``, ``on`` and ``off`` are text too. (PyYAML's own rules are YAML 1.1, where the
first is text, the second an integer in base sixty and ``no`` is false.)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import yaml

from qwen_job.errors import JobError, Problem
from qwen_job.strict_yaml import MAX_DEPTH, MAX_VALUES, TOO_DEEP, TOO_MANY, Excess, Loader, check
from qwen_job.strict_yaml import reason as _first_line

Path = tuple[str | int, ...]
# More digits do not fit a float and are a typo; Python's own limit is 4,300.
MAX_DIGITS = 300
# One step of ``a.b[0]``; a part in brackets may contain dots: kubernetes.labels[app.kubernetes.io/name].
_STEP = r"\[([^\[\]]+)\]|(?:^|(?<=.)\.)([^.\[\]]+)"


class Position(NamedTuple):
    """Where a value was written; ``line`` and ``column`` count from 1."""

    source: str
    line: int
    column: int


@dataclass
class Document:
    """A mapping with the position of every key and value in it; ``texts`` holds its numbers as they were written."""

    value: dict[str, Any]
    positions: dict[Path, Position] = field(default_factory=dict)
    texts: dict[Path, str] = field(default_factory=dict)

    def position(self, path: Path) -> Position | None:
        """Return where ``path`` was written, or the nearest enclosing place that has a position."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]]
        return None

    def at(self, path: Path) -> Any:
        """Return the text written at ``path``, through short forms (``data: a.json``); None if there is none."""
        value: Any = self.value
        for part in path:
            value = value[part] if _exists(value, (part,)) else value
        return value if isinstance(value, str) else None

    def problem(self, path: Path, message: str) -> Problem:
        """Return a :class:`Problem` at the position of ``path``, or at the job itself where there is none."""
        at = self.position(path) or Position("job", 0, 0)
        return Problem(at.source, at.line, at.column, dotted(path), message)


class _Loader(Loader):
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
    """Read ``text`` as YAML, as in ``--set field=text``; raises ValueError."""
    return _parse_value(text)[0]


def _parse_value(text: str) -> tuple[Any, dict[Path, str]]:
    reader = _Reader("--set")
    try:
        check(text, _Loader)
        node = yaml.compose(text, Loader=_Loader)
        value = None if node is None else reader.read(node, ())
    except Excess as error:
        raise ValueError(error.reason) from None
    except yaml.YAMLError as error:
        raise ValueError(f"invalid YAML: {_first_line(error)}") from None
    except JobError as error:
        raise ValueError(error.problems[0].message) from None
    if reader.problems:
        raise ValueError(reader.problems[0].message)
    return value, reader.texts


def parse(text: str, source: str) -> Document:
    """Read a YAML mapping.

    Raises:
        JobError: names file, line and column.
    """
    try:
        check(text, _Loader)
        node = yaml.compose(text, Loader=_Loader)
    except Excess as error:
        raise JobError([Problem(source, error.line, error.column, "", error.reason)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise JobError([Problem(source, line, column, "", _invalid(error, text, line))]) from None
    except yaml.YAMLError as error:
        # A character that YAML does not allow: the reader knows its offset, not its line.
        before = text[: getattr(error, "position", 0)]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise JobError([Problem(source, line, column, "", f"invalid YAML: {_first_line(error)}")]) from None
    if node is None:
        raise JobError([Problem(source, 0, 0, "", "the file is empty; 'qwen-job init' writes one to start from")])
    if not isinstance(node, yaml.MappingNode):
        message = "expected 'field: value' lines; 'qwen-job init' writes a file to start from"
        raise JobError([Problem(source, 1, 1, "", message)])
    reader = _Reader(source)
    value = reader.read(node, ())
    if reader.problems:
        raise JobError(reader.problems)
    return Document(value, reader.positions, reader.texts)


def _invalid(error: yaml.YAMLError, text: str, number: int) -> str:
    """Describe what is wrong with a line of YAML in the words of somebody who indents it."""
    lines = text.splitlines()
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    why = _first_line(error)
    if "\t" in line[: len(line) - len(line.lstrip())]:
        why = "a tab; indent with spaces"
    elif "mapping values are not allowed" in why:
        why = "a second ': '; indent the line like its neighbours, or write the text in quotes"
    elif "block mapping" in why:
        why = "indented differently from the lines above it"
    return f"invalid YAML: {why}" + (f" (line {number} is {line.strip()[:80]!r})" if line.strip() else "")


class _Reader:
    """Turns nodes into values, noting positions; aliases are expanded within a budget."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[Path, Position] = {}
        self.texts: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self._left = MAX_VALUES
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0 or node in self._open:
            why = "an alias that contains itself" if node in self._open else TOO_MANY
            raise JobError([self._problem(node, path, f"{why}: write the values out")])
        self.positions.setdefault(path, self._position(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.problems.append(self._problem(node, path, f"the tag {node.tag!r} is not known here; remove it"))
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
            if key == "<<" and not key_node.style:
                why = "merge keys (<<) are not supported; write the fields out, or split them into layers with -f"
                self.problems.append(self._problem(key_node, path, why))
                continue
            if key in result:
                self.problems.append(self._problem(key_node, (*path, key), "written twice; remove one of them"))
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
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        self.texts[path] = text
        if len(text) > MAX_DIGITS:
            message = f"{text[:20]}... is a number of {len(text):,} characters; at most {MAX_DIGITS}"
            self.problems.append(self._problem(node, path, message))
            return None
        try:
            if kind == "int":
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            if kind == "float":
                return self._finite(node, text, path)
        except ValueError:
            self.problems.append(self._problem(node, path, f"not a number: {text[:60]!r}"))
            return None
        self.problems.append(self._problem(node, path, f"the tag {node.tag!r} is not known here; remove it"))
        return None

    def _finite(self, node: yaml.ScalarNode, text: str, path: Path) -> float | None:
        special = text.lower().lstrip("+-.") in ("inf", "nan")
        number = float(text.replace(".", "", 1) if special else text)
        if math.isfinite(number):
            return number
        self.problems.append(
            self._problem(node, path, f"{text[:60]} is not a finite number, which JSON cannot represent")
        )
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
    """Override ``base`` with ``layer``: mappings merge key by key, everything else is replaced."""
    merged = Document(overlay(base.value, layer.value))
    for document in (base, layer):
        for path, position in document.positions.items():
            if _exists(merged.value, path):
                merged.positions[path] = position
    return merged


def overlay(base: Any, layer: Any) -> Any:
    """Override one plain value with another: mappings merge key by key, anything else is replaced."""
    if isinstance(base, dict) and isinstance(layer, dict):
        return {**base, **{key: overlay(base.get(key), value) for key, value in layer.items()}}
    return layer


def _exists(value: Any, path: Path) -> bool:
    for part in path:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            return False
        value = value[part]
    return True


def assign(document: Document, assignment: str) -> None:
    """Apply ``--set a.b=c`` (``a.0.b`` or ``a[0].b`` for an item of a list).

    Raises:
        JobError: the path does not exist, or the value is not YAML.
    """
    name, equals, text = assignment.partition("=")
    if not equals or not _steps(name):
        raise JobError([Problem("--set", 0, 0, name, "write it as field=value, e.g. train.learning_rate=2e-5")])
    try:
        value, texts = _parse_value(text)
    except ValueError as error:
        raise JobError([Problem("--set", 0, 0, name, str(error))]) from None
    path = place(document, name, value, Position("--set", 0, 0))
    document.texts = {(*path, *inner): written for inner, written in texts.items()}


def place(document: Document, name: str, value: Any, at: Position) -> Path:
    """Set the field ``name`` (``a.b[0].c``) to ``value``, which was written ``at``, and return the field's path.

    Raises:
        JobError: the path does not exist.
    """
    steps = _steps(name)
    if not steps:
        raise JobError([Problem(*_place(at), name, "is not a field's name; write it as train.learning_rate")])
    if len(steps) + _depth(value) > MAX_DEPTH:
        raise JobError([Problem(*_place(at), f"{name[:60]}...", TOO_DEEP)])
    target: Any = document.value
    path: Path = ()
    for part, following in pairwise(steps):
        if following == "0" and isinstance(target, dict) and target.get(part) is None and path[:1] != ("sweep",):
            message = f"the list has no items yet; write it whole: {dotted((*path, part))}=[...]"
            raise JobError([Problem(*_place(at), name, message)])
        target, path = _step(target, part, path, at)
    key = _key(target, steps[-1], path, at)
    target[key] = value
    path = (*path, key)
    for known in [p for p in document.positions if p[: len(path)] == path]:
        del document.positions[known]
    document.positions[path] = at
    return path


def _depth(value: Any) -> int:
    if not isinstance(value, (dict, list)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def _steps(name: str) -> list[str]:
    """Return the parts of ``a.b[c]``; empty if the syntax is wrong."""
    steps = re.findall(_STEP, name)
    return [] if "".join(re.split(_STEP, name)[::3]) else [bracketed or plain for bracketed, plain in steps]


def _place(at: Position) -> tuple[str, int, int]:
    return at.source, at.line, at.column


def _step(target: Any, part: str, path: Path, at: Position) -> tuple[Any, Path]:
    """Return the mapping or list at ``part`` of ``target``, created if missing, and its path."""
    key = _key(target, part, path, at)
    path = (*path, key)
    if isinstance(target, dict) and target.get(key) is None:
        target[key] = {}
    return target[key], path


def _key(target: Any, part: str, path: Path, at: Position) -> str | int:
    if isinstance(target, dict):
        return part
    if not isinstance(target, list):
        raise JobError([Problem(*_place(at), dotted(path), f"is {repr(target)[:80]}, which has no fields to set")])
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(target):
        message = f"the list has {len(target)} items; name one by its number from 0"
        raise JobError([Problem(*_place(at), dotted((*path, part)), message)])
    return int(part)
