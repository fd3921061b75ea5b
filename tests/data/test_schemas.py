"""Arguments of tool calls against JSON Schemas, among them schemas that are wrong or hostile."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from qwen_job.data.schemas import SchemaProblem, ToolSchemas

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "where", "words"),
    [
        ({"city": "Paris", "days": [1, 2]}, None, ""),
        ({}, "", "'city' is a required property"),
        ({"city": 3}, ".city", "3 is not of type 'string'"),
        ({"city": "Paris", "days": [1, "2"]}, ".days[1]", "'2' is not of type 'integer'"),
        ({"city": "Paris", "unit": "C"}, "", "'unit' was unexpected"),
    ],
)
def test_arguments_are_compared(arguments: dict[str, Any], where: str | None, words: str) -> None:
    found = ToolSchemas().of_arguments(WEATHER, arguments)
    assert (found and found.where) == where
    assert found is None or words in found.message


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "dict"}, ".type"),
        ({"properties": {"city": {"type": "str, optional"}}}, ".properties.city.type"),
        ({"properties": []}, ".properties"),
        ("city", ""),
        ({"required": "city"}, ".required"),
    ],
)
def test_a_wrong_schema_is_found_and_checks_nothing(schema: Any, where: str) -> None:
    schemas = ToolSchemas()
    found = schemas.of_schema(schema)
    assert found is not None and found.where == where
    assert schemas.of_arguments(schema, {"city": 3}) is None


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "https://schemas.example/city.json"}, "refers to https://schemas.example/city.json"),
        ({"properties": {"city": {"$ref": "#/$defs/no"}}}, "refers to"),
    ],
)
def test_nothing_is_fetched_or_followed_for_ever(schema: Any, words: str) -> None:
    found = ToolSchemas().of_arguments(schema, {"city": "Paris"})
    assert found is not None and words in found.message


@pytest.mark.parametrize(
    ("schema", "value", "said"),
    [
        ({"type": "string"}, None, "null is not of type 'string'"),
        ({"type": "string"}, True, "true is not of type 'string'"),
        ({"type": "string"}, {"a": [None, "é"]}, '{"a": [null, "é"]} is not of type \'string\''),
        ({"enum": ["a", None]}, "b", "'b' is not one of [\"a\", null]"),
        ({"const": False}, None, "false was expected"),
    ],
)
def test_values_are_shown_as_json(schema: Any, value: Any, said: str) -> None:
    found = ToolSchemas().of_arguments({"properties": {"x": schema}}, {"x": value})
    assert found == SchemaProblem(".x", said)


def test_patterns_are_not_evaluated() -> None:
    hostile = {"properties": {"city": {"type": "string", "pattern": "^(a+)+$"}}, "patternProperties": {"(": {}}}
    assert ToolSchemas().of_arguments({**hostile, "additionalProperties": False}, {"city": "a" * 60 + "b"}) is None


def test_a_long_message_is_shortened() -> None:
    found = ToolSchemas().of_arguments({"type": "string"}, {"city": "x" * 5000})
    assert found is not None and len(found.message) < 200 and found.message.endswith("is not of type 'string'")


def test_validators_are_kept_but_not_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.data.schemas._KEPT", 3)
    schemas = ToolSchemas()
    for number in range(10):
        found = schemas.of_arguments({"required": [f"key{number}"]}, {})
        assert found == SchemaProblem("", f"'key{number}' is a required property")
    assert len(schemas._checks) <= 3


def test_without_the_package_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    schemas = ToolSchemas()
    assert not schemas.available
    assert schemas.of_schema({"type": "dict"}) is schemas.of_arguments(WEATHER, {}) is None
