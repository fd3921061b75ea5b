"""A chat template: where it is found, what it renders, and how it fails."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qwen_job.chat.template import ChatTemplate, Unrenderable, find_texts, read_template
from qwen_job.errors import ModelError
from tests.chat.cases import EXAMPLES, example, template, text_of

QUESTION = {"role": "user", "content": "Hi"}


def made(text: str, **more: Any) -> ChatTemplate:
    return ChatTemplate({"default": text}, "a.jinja", **more)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example_is_rendered_as_recorded(name: str) -> None:
    case = example(name)
    rendered = template(case["template"]).render(case["messages"], case["tools"], **case["template_kwargs"])
    assert rendered == case["rendered_whole"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_worked_example_is_prompted_as_recorded(name: str) -> None:
    case = example(name)
    for prompt in case["generation_prompts"]:
        before = case["messages"][: prompt["before_message"]]
        text = template(case["template"]).render(before, case["tools"], True, **case["template_kwargs"])
        assert text == prompt["text"]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if "RECONSTRUCTED" not in name])
def test_the_templates_are_those_of_the_worked_examples(name: str) -> None:
    case = example(name)
    text = text_of(case["template"])
    assert template(case["template"]).sha256 == hashlib.sha256(text.encode()).hexdigest() == case["template_sha256"]


def test_a_template_is_found_in_its_own_file_before_the_config(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "eos_token": "<e>"}))
    found = find_texts(tmp_path)
    assert found and found.texts == {"default": "old"}
    assert found.tokens == {"eos_token": "<e>"}
    (tmp_path / "chat_template.jinja").write_text("new")
    found = find_texts(tmp_path)
    assert found and found.texts == {"default": "new"}


def test_named_templates_are_chosen_by_the_tools(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed}))
    found = find_texts(tmp_path)
    assert found
    chat = ChatTemplate(found.texts, "here")
    assert chat.render([QUESTION]) == "plain"
    assert chat.render([QUESTION], [{"type": "function"}]) == "tools"


def test_a_folder_with_more_templates_has_them_all(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "chat_template.jinja").write_text("plain")
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    found = find_texts(tmp_path)
    assert found and found.texts == {"default": "plain", "tool_use": "tools"}


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert find_texts(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert find_texts(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", "{", '{"chat_template": 3}', '{"chat_template": [{"name": "a"}]}'])
def test_a_broken_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer_config.json: .*fetch the model again"):
        find_texts(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.jinja: cannot be read"):
        read_template(tmp_path / "nowhere.jinja")


def test_a_date_is_the_one_that_was_pinned() -> None:
    chat = made("{{ strftime_now('%d %b %Y') }}", date=datetime.date(2025, 3, 9))
    assert chat.render([QUESTION]) == "09 Mar 2025"


def test_generation_marks_leave_the_text_as_it_is() -> None:
    assert made("a{% generation %}b{{ messages[0].content }}{% endgeneration %}c").render([QUESTION]) == "abHic"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_seen_under_each_of_its_names(name: str) -> None:
    seen = made("{{ messages[0].reasoning_content }}").render([{"role": "assistant", "content": "a", name: "r"}])
    assert seen == "r"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}", "loops more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "for ever"),
        ("{{ 'a' * 999999999 }}", "too large"),
        ("{{ 9 ** 9999 }}", "too large"),
        ("{{ raise_exception('no thanks') }}", "no thanks"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ ().__class__ }}x{{ ''.__class__.mro() }}", "unsafe|undefined"),
        ("{{ messages.append(1) }}", "unsafe|safe"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "underscore"),
        ("{% for", "is no Jinja template"),
    ],
)
def test_a_template_that_fails_says_why(text: str, words: str) -> None:
    with pytest.raises(Unrenderable, match=words):
        made(text).render([QUESTION])


def test_the_turn_at_fault_is_named() -> None:
    late = [QUESTION, {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}, QUESTION]
    with pytest.raises(Unrenderable, match=r"turn 3 \(system\): .*beginning.*move the system turn"):
        template("qwen3_6").render(late)


def test_a_conversation_without_a_question_is_refused_with_advice() -> None:
    alone = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(Unrenderable, match="give the conversation a user turn"):
        template("qwen3_6").render(alone)
