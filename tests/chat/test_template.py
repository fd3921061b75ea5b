"""A chat template: where it is found, what it renders, and how it fails."""

from __future__ import annotations

import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen_job.chat.sandbox import _USUAL, _Environment
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


@pytest.mark.parametrize(
    "expression",
    [
        "'%900000000d' % 1", "'%.900000000f' % 1", "'%*d' % (900000000, 1)", "'%(a)900000000d' % {'a': 1}",
        "'%900000000d'|format(1)", "'{:900000000}'.format(1)", "'{:{}}'.format(1, 900000000)",
        "'{a:>900000000}'.format_map({'a': 1})", "'a'.ljust(900000000)", "'a'.rjust(width=900000000)",
        "'a'.center(900000000, 'b')", "'1'.zfill(900000000)", "'a'|center(900000000)",
        "['a']|map('center', 900000000)|list",
        "'\\t'.expandtabs(900000000)", "(1).to_bytes(900000000, 'big')", "[1]|batch(900000000, 0)|list",
        "[1]|slice(900000000)|list", "range(900000000)|list", "('a' * 99999).replace('a', 'b' * 99999)",
        "('a' * 99999)|replace('a', 'b' * 99999)", "('b' * 99999).join('a' * 99999)", "('a' * 99999)|join('b' * 99999)",
        "('a' * 99999).translate({97: 'b' * 99999})", "('\\n' * 99999)|indent(99999)", "[1]|tojson(indent=99999)",
        "[[0] * 9999999] * 9999999", "([[0] * 9999999] * 9)|sum(start=[])", "lipsum(99999, min=99, max=100)",
        "(('a ' * 99999)|wordwrap(1, wrapstring='b' * 99999))", "9 ** 9999", "(9999999999 ** 60) ** 9",
    ],
)  # fmt: skip
def test_an_expression_that_would_fill_the_memory_is_refused(expression: str) -> None:
    with pytest.raises(Unrenderable, match=r"too large|Range too big"):
        made("{{ " + expression + " }}").render([QUESTION])


@pytest.mark.parametrize(
    "step",
    [
        "n.x + n.x",
        "n.x ~ n.x",
        "[n.x, n.x]|join",
        "n.x|tojson|tojson",
        "[n.x, n.x]",
        "{'a': n.x, 'b': n.x}",
        "n.x|list + n.x|list",
        "(n.i * n.i)|string",
    ],
)
def test_a_text_that_grows_and_grows_is_refused(step: str) -> None:
    text = (
        "{% set n = namespace(x='\\\\\"', i=3) %}{% for _ in range(64) %}{% set n.x = STEP %}{% set n.i = n.i * n.i %}"
    )
    with pytest.raises(Unrenderable, match="too large"):
        made(text.replace("STEP", step) + "{% endfor %}").render([QUESTION])


@pytest.mark.parametrize("step", ["x + x", "x ~ x", "[x, x]", "x=x + x", "[x + x][0]", "x + x if x else x"])
def test_a_macro_that_calls_itself_with_more_is_refused(step: str) -> None:
    text = "{% macro f(x) %}{{ f(STEP) }}{% endmacro %}{{ f('abc') }}".replace("STEP", step)
    with pytest.raises(Unrenderable, match="too large"):
        made(text).render([QUESTION])


@pytest.mark.parametrize("frame", ["LOOP", "{% set x %}LOOP{% endset %}", "{% macro f() %}LOOP{% endmacro %}{{ f() }}"])
def test_a_rendering_has_a_longest_length(frame: str) -> None:
    loop = "{% for _ in range(9) %}{{ 'a' * 9000000 }}{% endfor %}"
    with pytest.raises(Unrenderable, match="makes more than 67,108,864 characters"):
        made(frame.replace("LOOP", loop)).render([QUESTION])


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("'%5.1f|%-3s|%d%% of 900000000' % (2.5, 'a', 1700000000)", "  2.5|a  |1700000000% of 900000000"),
        ("'{:>4}{a!r:<4}|{}'.format('x', 1700000000, a='y')", "   x'y' |1700000000"),
        ("'a'.ljust(3, '-') ~ 'b'.zfill(3) ~ 'c'.center(3) ~ ('d'|center(3))", "a--00b c  d "),
        ("'a-b'.replace('-', '+', 1) ~ ('a-b'|replace('-', ''))", "a+bab"),
        ("[1, 2, 3]|batch(2, 0)|map('join', '.')|join(',')", "1.2,3.0"),
        ("'/'.join(['a', 'b']|map('upper'))", "A/B"),
        ("[1, 2]|sum ~ ([[1], [2]]|sum(start=[]))", "3[1, 2]"),
        ("{'a': [1]}|tojson(indent=1)", '{\n "a": [\n  1\n ]\n}'),
        ("'a\\nb'|indent(2) ~ 7 % 4 ~ 2 ** 5 ~ 3 * 'x' ~ 6 * 7", "a\n  b332xxx42"),
        ("1700000000 * 1000 + 5", "1700000000005"),
    ],
)
def test_what_templates_do_is_done(expression: str, wanted: str) -> None:
    assert made("{{ " + expression + " }}").render([QUESTION]) == wanted


@pytest.mark.parametrize("kind", _USUAL)
def test_what_a_template_may_read_is_what_jinja_lets_it(kind: type[Any]) -> None:
    ours, jinja, value = _Environment(), ImmutableSandboxedEnvironment(), _USUAL[kind]
    names = [*dir(value), "unheard_of", "_hidden", "__hidden__"]
    wanted = {name: jinja.is_safe_attribute(value, name, None) for name in names}
    assert {name: ours.is_safe_attribute(value, name, None) for name in names} == wanted
    assert not any(wanted[name] for name in names if name.startswith("_"))


@pytest.mark.parametrize("expression", ["''.__class__", "[].append(1)", "{}.clear()", "().__class__.__mro__"])
def test_what_a_template_must_not_reach_is_refused_each_time(expression: str) -> None:
    for _ in range(2):
        with pytest.raises(Unrenderable, match=r"unsafe|not safely callable"):
            made("{{ " + expression + "() }}").render([QUESTION])
