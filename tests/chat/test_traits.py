"""What a template can do is found by asking it."""

from __future__ import annotations

import pytest

from qwen_job.chat.template import ChatTemplate
from qwen_job.chat.traits import traits_of
from qwen_job.chatml import chat_template
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


@pytest.mark.parametrize("text", [chat_template(), chat_template(""), "", "{{ raise_exception('never') }}", "{% if"])
def test_a_template_with_neither(text: str) -> None:
    assert able(ChatTemplate({"default": text}, "made")) == (False,) * 5


def test_named_templates_are_asked_for_tools() -> None:
    named = ChatTemplate({"default": chat_template(), "tool_use": template("qwen2_5").text}, "made")
    assert able(named) == WANTED["qwen2_5"]
