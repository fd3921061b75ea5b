"""The plan says what is done for answers without reasoning where it knows the chat template, and else who decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen_job.errors import JobError
from qwen_job.facts.thinking import known_thinking
from qwen_job.models.random_init import load_config
from qwen_job.plan import Plan
from tests.chat import cases

from .jobs import plan_of


def model_in(folder: Path) -> Path:
    """Return a folder with a model's config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(load_config("qwen2-tiny")))
    return folder


def decided(plan: Plan) -> tuple[object, str]:
    (found,) = [one for one in plan.decisions if one.field == "data.empty_think"]
    return found.value, found.reason


@pytest.mark.parametrize(
    ("sets", "value", "reason"),
    [
        (["model=Qwen/Qwen3-4B"], "mask", "still thinks when asked to"),
        (["model=Qwen/Qwen3-4B", "data.template=chatml"], "omit", "no place for reasoning"),
        (["model=Qwen/Qwen3-4B-Base"], "auto", "the run reads the chat template"),
        (["model=Qwen/Qwen3-4B-Thinking-2507"], "mask", "every prompt of this template opens a thought"),
        (["model=/elsewhere/model"], "auto", "the run reads the chat template"),
        (["data.template=/elsewhere/own.jinja"], "auto", "the run reads the chat template"),
        (["model=Qwen/Qwen2.5-7B-Instruct"], "omit", "no place for reasoning"),
        (["model={name: qwen2-tiny, source: random}"], "omit", "no place for reasoning"),
        (["model=Qwen/Qwen3-4B", "data.empty_think=learn"], "learn", "written in the job"),
    ],
)
def test_by_name(tmp_path: Path, sets: list[str], value: str, reason: str) -> None:
    found, why = decided(plan_of(tmp_path, *sets))
    assert found == value and reason in why


@pytest.mark.parametrize("name", ["qwen3", "qwq", "qwen2_5"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_a_template_on_this_machine_is_asked(tmp_path: Path, name: str, in_folder: bool) -> None:
    folder = model_in(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": cases.text_of(name)}))
    (tmp_path / "own.jinja").write_text(cases.text_of(name))
    plan = plan_of(tmp_path, f"model={folder}" if in_folder else f"data.template={tmp_path}/own.jinja")
    maker = cases.maker(name)
    assert decided(plan) == (maker.empty_think, maker.why)


def test_a_folder_without_a_tokenizer_says_nothing_about_its_template(tmp_path: Path) -> None:
    folder = model_in(tmp_path / "model")
    assert decided(plan_of(tmp_path, f"model={folder}"))[0] == "auto"


def test_a_setting_without_effect_is_told(tmp_path: Path) -> None:
    for value, told in (("auto", False), ("omit", False), ("mask", True)):
        warnings = plan_of(tmp_path, f"data.empty_think={value}").warnings
        assert any("data.empty_think: mask has no effect" in warning for warning in warnings) == told


@pytest.mark.parametrize(
    ("sets", "value"),
    [
        (["model=Qwen/Qwen3-4B"], "split"),
        (["model=Qwen/Qwen3-4B", "data.several_thoughts=join"], "join"),
        (["model=Qwen/Qwen2.5-7B-Instruct"], None),
    ],
)
def test_a_template_that_thinks_may_split_conversations(tmp_path: Path, sets: list[str], value: str | None) -> None:
    found = {one.field: one for one in plan_of(tmp_path, *sets).decisions}.get("data.several_thoughts")
    assert (found and found.value) == value
    assert value != "split" or (found and "becomes several samples; the plan counts it as one" in found.reason)


@pytest.mark.parametrize(
    "text", ["{% for i in range(10**12) %}x{% endfor %}", "{{ raise_exception('No tools, no question.') }}"]
)
def test_of_a_template_that_renders_no_question_nothing_is_claimed(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.jinja").write_text(text)
    assert decided(plan_of(tmp_path, f"data.template={tmp_path}/own.jinja"))[0] == "auto"


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"chat_template": 5}', "{"])
def test_tokenizer_files_that_are_none_are_refused_with_the_field(tmp_path: Path, text: str) -> None:
    folder = model_in(tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(JobError, match=r"model\.name: .*tokenizer_config\.json: .*; fetch the model again"):
        plan_of(tmp_path, f"model={folder}")


@pytest.mark.parametrize("text", ["{% if", "{{ 1 + }}"])
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(JobError, match=r"data\.template: .*own\.jinja:1: is no Jinja template"):
        plan_of(tmp_path, f"data.template={tmp_path}/own.jinja")


@pytest.mark.parametrize(("model", "template"), [("Qwen/Qwen2.5-7B-Instruct", "qwen2_5"), ("qwen3-8b", "qwen3")])
def test_facts_agree_with_the_templates(model: str, template: str) -> None:
    assert known_thinking(model) == cases.maker(template).traits.thinking
