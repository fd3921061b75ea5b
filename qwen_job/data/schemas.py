"""Compare the arguments of tool calls with the JSON Schema of their tool.

The dialect is draft 7, whose schema of schemas is checked six times as fast as that of 2020-12; newer keywords, such as
``prefixItems``, are not evaluated. Nor are regular expressions (``pattern``, ``patternProperties``): JSON Schema's are
JavaScript's, and one from a data file can run for hours; ``format``; and references to other documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

_KEPT = 1024  # schemas whose validators are kept
_LONGEST = 160


class SchemaProblem(NamedTuple):
    """What is wrong; ``where`` is a path such as ``.city`` or ``.days[0]``, empty for the whole."""

    where: str
    message: str


Check = Callable[[Any], SchemaProblem | None]


class ToolSchemas:
    """Checks schemas and arguments; builds the validator of a schema only once."""

    def __init__(self) -> None:
        self._checks: dict[str, tuple[SchemaProblem | None, Check]] = {}

    @property
    def available(self) -> bool:
        """Tell whether the package jsonschema is installed; without it, no problem is found."""
        return self._make is not None

    @cached_property
    def _make(self) -> Callable[[Any], tuple[SchemaProblem | None, Check]] | None:
        return _validator_maker()  # takes a quarter of a second, and most data has no tools

    def of_schema(self, schema: Any) -> SchemaProblem | None:
        """Return the first problem of the schema itself."""
        return self._check(schema)[0]

    def of_arguments(self, schema: Any, arguments: Mapping[str, Any]) -> SchemaProblem | None:
        """Return the first problem of ``arguments``; None also if the schema itself is wrong."""
        return self._check(schema)[1](arguments)

    def _check(self, schema: Any) -> tuple[SchemaProblem | None, Check]:
        key = json.dumps(schema, sort_keys=True)
        if key not in self._checks:
            if len(self._checks) >= _KEPT:
                self._checks.clear()
            self._checks[key] = self._build(schema)
        return self._checks[key]

    def _build(self, schema: Any) -> tuple[SchemaProblem | None, Check]:
        return self._make(schema) if self._make else (None, lambda _: None)


def _validator_maker() -> Callable[[Any], tuple[SchemaProblem | None, Check]] | None:
    """Return a function from a schema to its own problem and the check of arguments, if jsonschema is installed."""
    try:
        import jsonschema
        from jsonschema.exceptions import SchemaError, best_match
        from referencing import Registry
        from referencing.exceptions import Unresolvable
    except ImportError:
        return None
    draft = jsonschema.Draft7Validator
    kind: Any = jsonschema.validators.extend(draft, _without_patterns(draft.VALIDATORS["additionalProperties"]))

    def make(schema: Any) -> tuple[SchemaProblem | None, Check]:
        try:
            draft.check_schema(schema)
        except SchemaError as error:
            return _problem(error), lambda _: None
        # With an empty registry, jsonschema fetches nothing that a schema refers to.
        validator = kind(schema, registry=Registry())

        def check(arguments: Any) -> SchemaProblem | None:
            try:
                error = best_match(validator.iter_errors(arguments))
            except RecursionError:
                return SchemaProblem("", "cannot be compared with the schema, which refers to itself without end")
            except Unresolvable as missing:
                return SchemaProblem("", f"cannot be compared with the schema, which refers to {missing.ref}")
            return error and _problem(error)

        return None, check

    return make


def _without_patterns(additional: Any) -> dict[str, Any]:
    def nothing(*_: Any) -> Iterator[Any]:
        return iter(())

    def additional_properties(validator: Any, rule: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        return nothing() if "patternProperties" in schema else additional(validator, rule, value, schema)

    return {"pattern": nothing, "patternProperties": nothing, "additionalProperties": additional_properties}


def _problem(error: Any) -> SchemaProblem:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    message = _in_json(str(error.message), error)
    return SchemaProblem(where, message if len(message) <= _LONGEST else f"{message[:110]} ... {message[-45:]}")


def _in_json(message: str, error: Any) -> str:
    """Return a message with the row's value, and that of an enum or const, as JSON: null instead of None.

    Text stays as Python quotes it.
    """
    values = [error.instance, *([error.validator_value] if error.validator in ("enum", "const") else [])]
    for value in values:
        if not isinstance(value, str):
            message = message.replace(repr(value), json.dumps(value, ensure_ascii=False), 1)
    return message
