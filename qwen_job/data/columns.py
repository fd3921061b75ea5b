"""Convert the columns of a table to Python values: what a struct holds as null for want of a value is left out.

A column of structs has every key in every row, filled with null where a row has no such key; so a null in a struct says
nothing, and would become an argument of a tool call that nobody wrote. Maps and JSON in strings have only the keys that
were written: null is a value there, and kept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from qwen_job.data.arrays import TABLE_FAULT
from qwen_job.data.keys import NULL_ARGUMENTS
from qwen_job.text import visible

_UNREADABLE = (ValueError, OverflowError, ArithmeticError, LookupError, TypeError, ImportError)
Convert = Callable[[Any], Any]


class Columns:
    """Converts the batches of a table."""

    def __init__(self, schema: Any) -> None:
        self._types = importlib.import_module("pyarrow.types")
        found = ((field.name, self._convert(field.type)) for field in schema)
        self._converts = {name: convert for name, convert in found if convert}
        self._null_arguments = 0

    def rows(self, batch: Any) -> list[Any]:
        """Return the rows of a batch; a text that begins with TABLE_FAULT says why a row cannot be read.

        A row has the key NULL_ARGUMENTS if nulls were left out of the arguments of its calls: how many.
        """
        try:
            rows = list(batch.to_pylist())
        except _UNREADABLE:
            # Some value has no Python counterpart: convert values one by one to find it.
            columns = list(zip(batch.schema.names, batch.columns, strict=True))
            rows = [_row(columns, number) for number in range(batch.num_rows)]
        # A table of plain turns has no nulls inside: most need no second look.
        converts = {name: each for name, each in self._converts.items() if self._holds_nulls(batch.column(name))}
        for row in rows if converts else ():
            if isinstance(row, dict):
                self._without_nulls(row, converts)
        return rows

    def _holds_nulls(self, array: Any) -> bool:
        """Tell whether a column may have nulls in its structs, or maps."""
        types, kind = self._types, array.type
        if types.is_struct(kind):
            fields = (array.field(number) for number in range(kind.num_fields))
            return any(field.null_count or self._holds_nulls(field) for field in fields)
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return self._holds_nulls(array.values)
        return bool(types.is_map(kind))

    def _without_nulls(self, row: dict[str, Any], converts: dict[str, Convert]) -> None:
        self._null_arguments = 0
        for name, convert in converts.items():
            row[name] = convert(row[name])
        if self._null_arguments:
            row.setdefault(NULL_ARGUMENTS, self._null_arguments)

    def _convert(self, data_type: Any, key: str = "") -> Convert | None:
        """Return a function that removes nulls from the structs in a value, None if there is none in it."""
        types = self._types
        if types.is_struct(data_type):
            fields = [data_type.field(number) for number in range(data_type.num_fields)]
            inner = {field.name: self._convert(field.type, field.name) for field in fields}
            return lambda value: self._struct(value, {name: each for name, each in inner.items() if each}, key)
        if types.is_map(data_type):
            of_item = self._convert(data_type.item_type)
            return lambda value: _mapping(value, of_item)
        if types.is_list(data_type) or types.is_large_list(data_type) or types.is_fixed_size_list(data_type):
            of_value = self._convert(data_type.value_type, key)
            return (lambda value: value and [of_value(each) for each in value]) if of_value else None
        return None

    def _struct(self, value: Any, inner: dict[str, Convert], key: str) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {name: part for name, part in value.items() if part is not None}
        if key == "arguments":
            self._null_arguments += len(value) - len(kept)
        for name, convert in inner.items():
            if name in kept:
                kept[name] = convert(kept[name])
        return kept


def _mapping(value: Any, convert: Convert | None) -> Any:
    """Return a map, which Arrow gives as pairs, as an object; with a key twice, it remains pairs."""
    if not isinstance(value, list):
        return value
    pairs = [(key, convert(item) if convert else item) for key, item in value]
    made = {str(key): item for key, item in pairs}
    return made if len(made) == len(pairs) else [list(pair) for pair in pairs]


def _row(columns: list[tuple[str, Any]], number: int) -> Any:
    values = {}
    for name, column in columns:
        try:
            values[name] = _value(column[number])
        except _UNREADABLE as error:
            return TABLE_FAULT + visible(f"column {name}: cannot be read ({' '.join(str(error).split())})", 200)
    return values


def _value(scalar: Any) -> Any:
    """Return a value as a Python object, or as text if there is none for it (a date in the year 20000)."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, ArithmeticError, ImportError):
        pyarrow = importlib.import_module("pyarrow")
        if isinstance(scalar, pyarrow.StructScalar):
            return {name: _value(scalar[name]) for name in scalar}
        if isinstance(scalar, pyarrow.ListScalar):
            return [_value(each) for each in scalar.values]
        if pyarrow.types.is_string(scalar.type) or pyarrow.types.is_large_string(scalar.type):
            return scalar.cast(pyarrow.large_binary()).as_py()
        return scalar.cast(pyarrow.string()).as_py()
