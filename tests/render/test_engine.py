"""Templates print quoted values only, and a user's mistakes come back with a place."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment, nodes

from qwen_job.errors import UsageError
from qwen_job.render.engine import FILTERS, TEMPLATES, render_template
from qwen_job.render.quote import Unrepresentable

OURS = sorted(TEMPLATES.rglob("*.j2"))
# These make something new of quoted text, or take what is no value.
LAST_FILTERS = set(FILTERS)


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(TEMPLATES)))
def test_every_value_of_our_templates_goes_through_a_filter(path: Path) -> None:
    tree = Environment().parse(path.read_text("utf-8"))
    for output in tree.find_all(nodes.Output):
        for node in output.nodes:
            good = isinstance(node, nodes.TemplateData) or (
                isinstance(node, nodes.Filter) and node.name in LAST_FILTERS
            )
            assert good, f"{path.name}:{node.lineno} prints a raw value"
    assert not list(tree.find_all(nodes.FilterBlock)), "a filter block changes quoted text"


def rendered(folder: Path, text: str, **context: object) -> str:
    (folder / "x.j2").write_text(text, "utf-8")
    return render_template("x.j2", context, [folder])


@pytest.mark.parametrize(
    "text",
    [
        "{{ v }}", "{{ 'text' }}", "{{ v | upper }}", "{{ v | sh | upper }}", "{{ (v | sh) ~ v }}", "{{ v | safe }}",
        "{{ v | sh | trim }}", "{{ 1 }}", "{% set w = v %}{{ w }}", "{{ v | indented(2) }}",
    ],
)  # fmt: skip
def test_a_raw_value_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"x\.j2:1: prints .* unquoted; pipe it through"):
        rendered(tmp_path, text, v="value")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ nobody | sh }}", r"x\.j2:1: 'nobody' is undefined"),
        ("a\n{% if %}", r"x\.j2:2: Expected an expression"),
        ("a\n\n{{ v | nofilter }}", r"x\.j2:3: No filter named 'nofilter'"),
        ("{% include 'no.j2' %}", "template no.j2: not found"),
        ("{{ v | number }}", r"x\.j2:1: invalid literal"),
        ("{% include 'x.j2' %}", r"x\.j2:1: maximum recursion"),
        ("{{ v.nothing | sh }}", "has no attribute 'nothing'"),
    ],
)
def test_a_user_s_mistake_has_a_place(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        rendered(tmp_path, text, v="value")


def test_a_template_that_is_not_utf8_is_the_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "x.j2").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="UTF-8"):
        render_template("x.j2", {}, [tmp_path])


def test_values_are_data_never_templates(tmp_path: Path) -> None:
    assert rendered(tmp_path, "{{ v | sh }}", v="{{ 7*7 }}{% raw %}") == "'{{ 7*7 }}{% raw %}'"


def test_quoted_fragments_can_be_indented(tmp_path: Path) -> None:
    assert rendered(tmp_path, "a:\n  {{ v | yaml | indented(2) }}\n", v={"x": 1, "z": 2}) == "a:\n  x: 1\n  z: 2\n"


def test_what_no_format_holds_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(Unrepresentable):
        rendered(tmp_path, "{{ v | sh }}", v="\0")


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    assert rendered(tmp_path, "\ufeff#!/bin/bash\n") == "#!/bin/bash\n"
