"""Turn pydantic's validation errors into problems with a place, a cause and a fix."""

from __future__ import annotations

import re
import reprlib
from typing import Any

from pydantic import BaseModel, ValidationError

from qwen_job.errors import Problem
from qwen_job.job.document import Document, Position, dotted
from qwen_job.job.document import Path as FieldPath
from qwen_job.job.job import Job
from qwen_job.job.places import as_list, other_word, right_place
from qwen_job.text import did_you_mean

# Users fix a few problems at a time, and every suggestion costs time.
_MOST_PROBLEMS = 200
_TYPE_TAG = r"[A-Z]\w+$|literal\[|function-|constrained-|(str|int|float|bool|dict|list)(\[|$)"
_EXPECTED = "expected "
_REQUIRED = "is required"
_NOUNS = {
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "int_parsing": "a whole number", "float_parsing": "a number", "bool_type": "true or false", "list_type": "a list",
    "dict_type": "'field: value' lines", "model_type": "'field: value' lines",
}  # fmt: skip
# pydantic's kind of error -> how the value is wrong, for a number outside its range and a text outside its length.
_TOO = {
    "greater_than": "too small", "greater_than_equal": "too small", "less_than": "too large",
    "less_than_equal": "too large",
}  # fmt: skip
_BOUNDS = {"gt": "more than {:.12g}", "ge": "{:.12g} or more", "lt": "less than {:.12g}", "le": "{:.12g} or less"}
_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxlist = _SHORT_REPR.maxdict = 20
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 100
_SHORT_REPR.maxlong = 400


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """Return the problems of a document that does not validate, at most the first 200."""
    items = error.errors(include_url=False)
    found = _without_alternatives([_translate(document, item) for item in items[:_MOST_PROBLEMS]])
    found = _without_misspelt(found)
    if len(items) > _MOST_PROBLEMS:
        more = f"{len(items) - _MOST_PROBLEMS:,} more problems; fix these first to see them"
        found.append(found[-1]._replace(field="", message=more))
    return found


def _without_alternatives(problems: list[Problem]) -> list[Problem]:
    """Keep one problem for a value of a union type: the one inside the value, or all expected types in one."""
    kept: list[Problem] = []
    for problem in problems:
        others = [p for p in problems if p is not problem]
        if problem.message.startswith(_EXPECTED):
            if any(p.field.startswith((f"{problem.field}.", f"{problem.field}[")) for p in others):
                continue
            if any(p.field == problem.field and not p.message.startswith(_EXPECTED) for p in others):
                continue
            same = [p for p in problems if p.field == problem.field and p.message.startswith(_EXPECTED)]
            if problem is not same[0]:
                continue
            _, _, given = problem.message.partition(", not ")
            expected = (p.message.removeprefix(_EXPECTED).partition(", not ")[0] for p in same)
            kinds = list(dict.fromkeys(word for words in expected for word in words.split(" or ")))
            either = " or ".join(part for part in (", ".join(kinds[:-1]), kinds[-1]) if part)
            problem = problem._replace(message=f"{_EXPECTED}{either}, not {given}")
        kept.append(problem)
    return kept


def _without_misspelt(problems: list[Problem]) -> list[Problem]:
    """Drop the problem of a missing field where another problem is its misspelt name."""
    meant = {found[1] for problem in problems if (found := re.search(r"did you mean '(.+)'", problem.message))}
    return [one for one in problems if not (one.field in meant and one.message.startswith(_REQUIRED))]


def _translate(document: Document, error: Any) -> Problem:
    path = tuple(part for part in error["loc"] if part != "[key]")
    in_union = str(path[-1] if path else "").startswith("literal[")
    path = _without_union_tags(document.value, path)
    given = error.get("input")
    context = error.get("ctx") or {}
    kind = error["type"]
    if kind == "extra_forbidden":
        return document.problem(path, _unknown_field(path))
    if kind == "missing":
        # A missing field has no position: point at its section.
        at = document.position(path[:-1]) or Position("job", 0, 0)
        return Problem(at.source, at.line, at.column, dotted(path), f"{_REQUIRED}{_example(path)}")
    if kind == "value_error":
        message = str(context.get("error", error["msg"]))
    elif kind == "string_pattern_mismatch":
        message = f"{_show(given)} has the wrong form{_example(path) or _example(path[:-1])}"
        if path == ("kubernetes", "queue"):
            kind, _, queue = str(given).partition(":")
            meant = did_you_mean(kind, ("kueue", "volcano", "coscheduling"))
            message += meant.replace("'?", f":{queue}'?") if queue else meant
    elif kind == "too_short":
        message = f"needs at least {context['min_length']} item{'s' * (context['min_length'] > 1)}, not {_show(given)}"
    elif kind == "literal_error" and in_union:
        # The description says what each word and number means.
        message = f"{_EXPECTED}{context['expected'].replace(chr(39), '')}, not {_show(given)}{_example(path)}"
    elif kind == "literal_error":
        message = f"{_show(given)} is not one of {context['expected']}"
        other = other_word(dotted(path), given)
        message += f"; write {other}" if other else did_you_mean(given, re.findall(r"'([^']+)'", context["expected"]))
    elif kind in _TOO:
        message = f"{_show(given)} is {_TOO[kind]}: write {_range(path, context)}"
    elif kind in ("string_too_long", "too_long"):
        what = "items" if isinstance(given, (list, dict)) else "characters"
        message = f"{_show(given)} is too long: write at most {context['max_length']} {what}"
    elif kind == "finite_number":
        message = f"{_show(given)} is not a finite number{_example(path)}"
    elif kind in _NOUNS:
        message = f"{_EXPECTED}{_NOUNS[kind]}, not {_show(given)}{_form(kind, path, given)}"
    else:
        message = f"{error['msg'][0].lower()}{error['msg'][1:]}, not {_show(given)}"
    return document.problem(path, message)


def _unknown_field(path: FieldPath) -> str:
    place = right_place(dotted(path))
    if not place:
        return f"unknown field{_did_you_mean(path)}"
    return f"unknown field; {place}" if place.startswith("write ") else place


def _form(kind: str, path: FieldPath, given: Any) -> str:
    """Show the form that a value needs, where it has another one."""
    if kind == "list_type" and isinstance(given, str) and given:
        return f"; write {as_list(given)}"
    if path == ("deepspeed",) and isinstance(given, str):
        stage = re.search(r"(?i)(?:zero|stage|z)[-_]?([0-3])", given)
        return (
            f"; write deepspeed.zero_stage: {stage[1] if stage else 'N'}; the plan writes the rest of DeepSpeed's file"
        )
    if "number" in _NOUNS.get(kind, "") and isinstance(given, str):
        return _number_meant(path, given)
    if kind == "dict_type":
        return _example(path)
    is_item = bool(path) and isinstance(path[-1], int)
    if kind == "string_type" and is_item and isinstance(given, (int, float)):
        return f"; write it in quotes: '{given}'"
    return ""


def _number_meant(path: FieldPath, given: str) -> str:
    """Return the number that a percentage or a number with a unit stands for, as a clause; empty for other text."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(?:(%)|([kmgt])i?b?)", given.strip(), re.IGNORECASE)
    if found is None:
        return ""
    value, unit, name = float(found[1]), (found[3] or "").lower(), dotted(path)
    if found[2]:
        return f"; write {value / 100:.12g}"
    if name.endswith("_gib"):
        return f"; write {value * 1024.0 ** ('kmgt'.index(unit) - 2):.12g}"
    step = 1024 if name.endswith("length") else 1000
    return f"; write {value * step ** ('kmgt'.index(unit) + 1):.15g}"


def _range(path: FieldPath, context: Any) -> str:
    """Return the numbers that a field takes, with both bounds where it has two: ``more than 0 and less than 1``."""
    model = _section(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model and path else None
    bounds = _bounds_of(field) if field is not None else {}
    bounds |= {name: value for name, value in context.items() if name in _BOUNDS}
    if {"ge", "le"} <= bounds.keys():
        return f"a number from {bounds['ge']:.12g} to {bounds['le']:.12g}{_example(path)}"
    limits = [words.format(bounds[name]) for name, words in _BOUNDS.items() if name in bounds]
    return " and ".join(limits) + _example(path)


def _bounds_of(field: Any) -> dict[str, Any]:
    """Return the bounds in the metadata of a field, of an ``Annotated`` type or of the types of a union."""
    found: dict[str, Any] = {}
    metadata: Any = getattr(field, "metadata", None) or getattr(field, "__metadata__", ())
    for part in metadata:
        found |= {name: value for name in _BOUNDS if (value := getattr(part, name, None)) is not None}
        found |= _bounds_of(part)
    inner = getattr(field, "annotation", None)
    for one in (inner, *getattr(inner if inner is not None else field, "__args__", ())):
        if one is not None and not isinstance(one, type):
            found |= _bounds_of(one)
    return found


def _without_union_tags(value: Any, path: FieldPath) -> FieldPath:
    """Drop the parts of pydantic's path that name a type (``CustomGpu``), not a field."""
    kept: list[str | int] = []
    for part in path:
        written = isinstance(value, dict) and part in value
        if isinstance(part, str) and not written and re.match(_TYPE_TAG, part):
            continue
        kept.append(part)
        value = value.get(part) if isinstance(value, dict) else None
    return tuple(kept)


def _example(path: FieldPath) -> str:
    model = _section(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    return f" ({field.description})" if field is not None and field.description else ""


def _did_you_mean(path: FieldPath) -> str:
    model = _section(path[:-1])
    if model is None:
        return ""
    name = str(path[-1])
    above = dotted(path[:-1])
    if meant := did_you_mean(name, model.model_fields, f"{above}." if above else ""):
        return meant
    for section, field in Job.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and name in inner.model_fields:
            return f"; did you mean '{section}.{name}'?"
    return f"; known fields: {', '.join(sorted(model.model_fields))}"


def _section(path: FieldPath) -> type[BaseModel] | None:
    """Return the model that describes the mapping at ``path``, None where keys are free."""
    model: Any = Job
    for part in path:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        model = next((m for m in _models(field.annotation) if m), None) if field else None
        if model is None:
            return None
    return model  # type: ignore[no-any-return]


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models(argument)]


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else _SHORT_REPR.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
