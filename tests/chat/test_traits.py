"""What a template can do is found by asking it."""

from __future__ import annotations

import pytest

from qwen_job.chat.template import ChatTemplate
from qwen_job.chat.traits import traits_of
from qwen_job.chatml import chat_template
from qwen_job.errors import ModelError
from tests.chat.cases import ALL, template

# tools, calls in XML, a place for reasoning, its switch, off where nobody asks
WANTED = {
    "qwen2_5": (True, False, False, False, False),
    "qwen3": (True, False, True, True, False),
    "qwen3_2507_thinking": (True, False, True, False, False),
    "qwen3_5_nothink": (True, True, True, True, True),
    "qwen3_5_think": (True, True, True, True, False),
    "qwen3_6": (True, True, True, True, False),
    "qwen3_8": (True, True, True, True, False),
    "qwen3_instruct_2507": (True, False, False, False, False),
    "qwq": (True, False, True, False, False),
}


def able(of: ChatTemplate) -> tuple[bool, ...]:
    traits = traits_of(of)
    return traits.knows_tools, traits.calls_in_xml, traits.thinks, traits.has_switch, traits.off_unasked


@pytest.mark.parametrize("name", ALL)
def test_a_models_template(name: str) -> None:
    assert able(template(name)) == WANTED[name]


@pytest.mark.parametrize("text", [chat_template(), chat_template("")])
def test_a_template_with_neither(text: str) -> None:
    assert able(ChatTemplate({"default": text}, "made")) == (False,) * 5


def test_named_templates_are_asked_for_tools() -> None:
    named = ChatTemplate({"default": chat_template(), "tool_use": template("qwen2_5").text}, "made")
    assert able(named) == WANTED["qwen2_5"]


LLAMA = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LATE = "\n{% for m in messages %}\n{% if m.role == 'assistant' %}\n{{ m.gone.sooner }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"a\.jinja: the chat template does not end turns with <\|im_end\|>; write chatml"),
        (LLAMA, r"a\.jinja: the chat template does not end turns with <\|im_end\|>"),
        ("\n{{ raise_exception('never') }}", r"a\.jinja:2: the chat template refuses: never; so it renders no chat"),
        ("{{ no.such.thing }}", r"a\.jinja:1: the chat template refuses: 'no' is undefined"),
        (LATE, r"a\.jinja:4: the chat template refuses: 'dict object' has no attribute 'gone'"),
        ("\n\n{% if", r"a\.jinja:3: is no Jinja template: .*; so it renders no chat"),
        ("\n{{ messages|nothing }}", r"a\.jinja:2: is no Jinja template: No filter named 'nothing'"),
        ("\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"a\.jinja:2: the chat template fails: calls itself"),
        ("{% for a in range(99999) %}\n{% for b in range(99999) %}{% endfor %}{% endfor %}", r"a\.jinja:2: .*loops"),
        ("{{ '%900000000d' % 1 }}", r"a\.jinja:1: .*too large"),
    ],
)
def test_a_template_that_is_right_for_no_data_is_one_error_of_its_file(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        traits_of(ChatTemplate({"default": text}, "a.jinja"))


def test_a_faulty_template_for_tools_is_found_beside_a_good_one() -> None:
    with pytest.raises(ModelError, match=r"a:1: the chat template refuses: no tools"):
        traits_of(ChatTemplate({"default": chat_template(), "tool_use": "{{ raise_exception('no tools') }}"}, "a"))


def test_a_template_may_insist_on_a_system_turn() -> None:
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + chat_template("")
    assert able(ChatTemplate({"default": insists}, "made")) == (False,) * 5
