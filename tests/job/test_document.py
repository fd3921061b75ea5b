"""YAML 1.2 scalars, positions, layers and --set."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.errors import JobError
from qwen_job.job.document import Document, Position, assign, dotted, merge, parse, parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("2.0e-5", 2e-5), (".5", 0.5), ("5.", 5.0), ("-3", -3), ("+4", 4), ("0x1F", 31), ("0o17", 15),
        ("010", 10), ("12:30:00", "12:30:00"), ("2026-11-23", "2026-11-23"), ("yes", "yes"), ("no", "no"),
        ("on", "on"), ("off", "off"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("1_000", "1_000"), ("'5'", "5"), ('"true"', "true"), ("0b1", "0b1"), ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}), ("!!str 5", "5"), ("!!int 0x10", 16), ("你好", "你好"),
    ],
)  # fmt: skip
def test_scalars_mean_what_people_type(text: str, value: Any) -> None:
    read = parse_scalar(text)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (".inf", "finite"), ("-.INF", "finite"), (".nan", "finite"), ("1e999", "finite"), ("!!int x", "not a number"),
        ("!!bool yes", "tag"), ("!!python/name:os.system x", "tag"), ("!mine {a: 1}", "tag"), ("[1", "invalid YAML"),
        ("{a: 1, a: 2}", "written twice"), ("&a [*a]", "contains itself"), ("a\n--- b", "invalid YAML"),
        ("{[1]: 2}", "plain text"), ("{<<: {a: 1}}", "merge keys"), ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_scalar(text)


def test_every_key_and_item_knows_its_place() -> None:
    document = parse("a: 1\nb:\n  - x\n  - {c: 2}\n", "f.yaml")
    assert document.positions["a",] == Position("f.yaml", 1, 1)
    assert document.positions["b", 1, "c"] == Position("f.yaml", 4, 6)
    assert document.position(("b", 1, "c", "deeper")) == Position("f.yaml", 4, 6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: the file is empty; 'qwen-job init' writes one to start from"),
        ("- 1", "f.yaml:1:1: expected 'field: value' lines; 'qwen-job init' writes a file to start from"),
        ("a: 1\n\tb: 2", "f.yaml:2:1: invalid YAML: a tab; indent with spaces"),
        ("a: [1\nb: 2", "f.yaml:2:2: invalid YAML: while parsing a flow sequence did not find expected ',' or ']'"),
        ("a: 1\nb: x\x01y", "f.yaml:2:5: invalid YAML: unacceptable character #x0001"),
        ("a: *nobody", "f.yaml:1:4: invalid YAML: found undefined alias"),
        ("a: 1\nb: 2\na: 3", "f.yaml:3:1: a: written twice"),
        ("a: " + "[" * 200 + "]" * 200, "f.yaml:1:67: nested too deeply"),
    ],
)  # fmt: skip
def test_bad_yaml_has_a_place(text: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        parse(text, "f.yaml")
    assert str(caught.value).startswith(message)


def test_anchors_are_read() -> None:
    assert parse("a: &x {b: [1]}\nc: *x", "f").value == {"a": {"b": [1]}, "c": {"b": [1]}}


def test_an_alias_bomb_is_stopped_early() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(JobError, match=r"f:5:25: .*more than 50,000 values"):
        parse("\n".join(lines), "f")


def test_layers_merge_mappings_and_replace_the_rest() -> None:
    merged = merge(parse("a: {b: 1, c: [1, 2]}\nd: 4", "base"), parse("a: {c: [3]}\ne: {f: 5}", "top"))
    assert merged.value == {"a": {"b": 1, "c": [3]}, "d": 4, "e": {"f": 5}}
    assert [merged.positions[p].source for p in (("a", "b"), ("a", "c"), ("d",))] == ["base", "top", "base"]
    assert ("a", "c", 1) not in merged.positions


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a.b=2", {"a": {"b": 2}, "l": [1, {"x": 1}]}),
        ("new.deep.field=[1, 2]", {"a": {"b": 1}, "l": [1, {"x": 1}], "new": {"deep": {"field": [1, 2]}}}),
        ("l.0=9", {"a": {"b": 1}, "l": [9, {"x": 1}]}),
        ("l[1].x=two", {"a": {"b": 1}, "l": [1, {"x": "two"}]}),
        ("a[k.io/name]=v", {"a": {"b": 1, "k.io/name": "v"}, "l": [1, {"x": 1}]}),
        ("a.b=", {"a": {"b": None}, "l": [1, {"x": 1}]}),
        ("a.b=x=y", {"a": {"b": "x=y"}, "l": [1, {"x": 1}]}),
        ("a.007=x", {"a": {"b": 1, "007": "x"}, "l": [1, {"x": 1}]}),
    ],
)  # fmt: skip
def test_set_assigns_yaml(assignment: str, value: dict[str, Any]) -> None:
    document = parse("a: {b: 1}\nl: [1, {x: 1}]", "f")
    assign(document, assignment)
    assert document.value == value


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("a.b", "write it as field=value"), ("=1", "write it as field=value"), ("a..b=1", "write it as field=value"),
        (".a=1", "write it as field=value"), ("a[=1", "write it as field=value"), ("a[0]b=1", "write it as"),
        ("a.b.c=1", "--set: a.b: is 1, which has no fields to set"), ("l.2=1", "--set: l.2: the list has 2 items"),
        ("l.²=1", "the list has 2 items"), ("l.first=1", "the list has 2 items"), ("l.0.x=1", "l[0]: is 1, which has"),
        ("a.b=[1", "--set: a.b: invalid YAML"), ("a.b={c: 1, c: 2}", "--set: a.b: written twice"),
    ],
)  # fmt: skip
def test_a_bad_set_says_how(assignment: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        assign(parse("a: {b: 1}\nl: [1, {x: 1}]", "f"), assignment)
    assert message in str(caught.value)


def test_a_set_takes_over_the_place() -> None:
    document = Document({"a": {"b": 1}}, {("a", "b"): Position("f", 1, 1), ("a", "b", "c"): Position("f", 2, 1)})
    assign(document, "a.b=2")
    assert document.positions == {("a", "b"): Position("--set", 0, 0)}


def test_paths_are_written_as_users_do() -> None:
    assert dotted(("data", "train", 0, "path")) == "data.train[0].path"
