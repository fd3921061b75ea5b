"""Hostile text through values.yaml and the command line: the chart takes what the CLI takes, or names the field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qwen_job.errors import JobError
from qwen_job.render.kubernetes.chart_values import LOST_BY_HELM
from qwen_job.render.quote import to_yaml
from qwen_job.resources import resource
from tests.property.test_hostile_kubernetes import rendered
from tests.support.helm import run_helm
from tests.support.hostile import FIELDS, TEXT, TRICKS, arrived
from tests.support.schemas import load, validate

CHART = resource("charts", "qwen-job")
LOST = re.compile(f"[{LOST_BY_HELM}\x00-\x08\x0b-\x1f]")
BOUNDED = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
FIELD = st.sampled_from(sorted(FIELDS))


def template(*arguments: str | Path, name: str = "my-run") -> list[dict[str, Any]] | str:
    """Return the objects, or what helm says against the values."""
    try:
        return load(run_helm("template", name, CHART, "--skip-tests", *arguments))
    except AssertionError as refused:
        return str(refused).partition("\n")[2]


def through_values(folder: Path, field: str, text: str) -> list[dict[str, Any]] | str:
    (folder / "values.yaml").write_text(to_yaml({"kubernetes": FIELDS[field](text)}), "utf-8")
    return template("-f", folder / "values.yaml")


def check(folder: Path, field: str, text: str) -> None:
    made, ours = through_values(folder, field, text), rendered(folder, FIELDS[field](text))
    if isinstance(made, str):
        assert isinstance(ours, JobError) or LOST.search(text), (field, text, made)
        assert field.partition(" ")[0] in made or LOST.search(text), (field, text, made)
        return
    # A network's host bits: the server takes them with a warning, and Helm has no means to tell them.
    assert not isinstance(ours, JobError) or "host bits" in str(ours), (field, text, ours)
    assert validate(made) == [], (field, text)
    assert arrived(made, text), (field, text)


@given(field=FIELD, text=TEXT)
@example(field="annotations", text='a\n---\nb: "{{ .Values }}"')
@example(field="pod_container", text="$(HOME) `id` '\"\\ {{ fail }}")
@example(field="labels", text="yes")
@example(field="node_selector", text="1e5")
@example(field="tolerations (value)", text="08")
@example(field="volumes (sub_path)", text="a/../b")
@BOUNDED
def test_the_chart_takes_what_the_cli_takes(tmp_path: Path, field: str, text: str) -> None:
    check(tmp_path, field, text)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_one_trick_for_every_field(tmp_path: Path, field: str) -> None:
    check(tmp_path, field, TRICKS[sum(map(ord, field)) % len(TRICKS)])


@given(field=st.sampled_from(["annotations.note", "node_selector.pool", "labels.team", "pod.hostname"]), text=TEXT)
@BOUNDED
def test_a_literal_of_the_command_line_arrives_or_is_named(field: str, text: str) -> None:
    made = template("--set-literal", f"kubernetes.{field}={text}")
    if isinstance(made, str):
        name = field.partition(".")[0]
        assert name in made or LOST.search(text), (field, text, made)
    else:
        assert arrived(made, text), (field, text)
        if not field.startswith("pod."):
            assert validate(made) == []


@given(name=TEXT, image=TEXT)
@BOUNDED
def test_a_hostile_name_or_image_is_taken_or_named(tmp_path: Path, name: str, image: str) -> None:
    (tmp_path / "values.yaml").write_text(to_yaml({"name": name, "image": image}), "utf-8")
    made = template("-f", tmp_path / "values.yaml")
    if isinstance(made, str):
        assert "name" in made or "image" in made or LOST.search(name + image), made
        return
    assert validate(made) == []
    assert (not name or arrived(made, name)) and arrived(made, image)
