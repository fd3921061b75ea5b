"""Hostile text in every field of the kubernetes section: a server takes what is written, or the field is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_job.errors import JobError
from qwen_job.job import load_job
from qwen_job.plan import make_plan
from qwen_job.render import render
from qwen_job.render.quote import to_yaml
from tests.jobs import PINNED
from tests.support.hostile import FIELDS, TEXT, TRICKS, arrived
from tests.support.schemas import load, validate

BOUNDED = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def rendered(folder: Path, section: dict[str, Any], **more: Any) -> list[dict[str, Any]] | JobError:
    """Return the objects of a job with that kubernetes section; its paths lie below /shared."""
    paths = {"data": {"train": "/shared/chats.json"}, "output": "/shared/run"}
    doubled = to_yaml({**PINNED, **paths, **more, "kubernetes": section}).replace("${", "$${")
    (folder / "job.yaml").write_text(doubled, "utf-8")
    try:
        return load(render(make_plan(load_job([folder / "job.yaml"], environ={})), "kubernetes").text)
    except JobError as error:
        return error


def check(folder: Path, field: str, text: str) -> None:
    made = rendered(folder, FIELDS[field](text))
    if isinstance(made, JobError):
        fields = {
            problem.field.removeprefix("kubernetes.").partition(".")[0].partition("[")[0] for problem in made.problems
        }
        assert fields <= {field.partition(" ")[0], "volumes"}, (field, text, made)
        return
    assert validate(made) == [], (field, text)
    assert arrived(made, text), (field, text)


@given(field=st.sampled_from(sorted(FIELDS)), text=TEXT)
@BOUNDED
def test_a_hostile_field_is_taken_or_named(tmp_path: Path, field: str, text: str) -> None:
    check(tmp_path, field, text)


@pytest.mark.parametrize("field", sorted(FIELDS))
def test_every_trick_in_every_field(tmp_path: Path, field: str) -> None:
    for text in TRICKS[len(field) % 9 :: 9]:
        check(tmp_path, field, text)


@given(name=TEXT, image=TEXT)
@BOUNDED
def test_a_hostile_name_or_image_is_taken_or_named(tmp_path: Path, name: str, image: str) -> None:
    made = rendered(tmp_path, {}, name=name, image=image)
    if isinstance(made, JobError):
        assert all(problem.field in ("name", "image") for problem in made.problems), made
        return
    assert validate(made) == []
    assert arrived(made, name) and arrived(made, image)
