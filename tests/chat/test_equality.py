"""Our rendering is transformers', byte for byte, and so is the text of each sample."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_job.chat.messages import plain_messages
from qwen_job.chat.template import Unrenderable
from tests.chat.cases import ALL, maker, template, text_of
from tests.chat.generated import conversations

pytestmark = pytest.mark.train


def transformers_text(
    name: str, messages: list[Any], tools: list[Any] | None, asks: bool, **options: Any
) -> str | None:
    """Return what transformers renders, None if it fails."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered: Any = render_jinja_template(
            [messages], tools=tools, chat_template=text_of(name), add_generation_prompt=asks, **options
        )
    except Exception:
        return None
    return str(rendered[0][0])


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10)
@given(chat=conversations(lookalikes=True), asks=st.booleans(), switch=st.sampled_from([None, True, False]))
def test_a_chat_is_rendered_as_by_transformers(name: str, chat: Any, asks: bool, switch: bool | None) -> None:
    messages = plain_messages(chat, chat.system)
    options = {} if switch is None else {"enable_thinking": switch}
    try:
        ours = template(name).render(messages.messages, messages.tools, asks, **options)
    except Unrenderable:
        ours = None
    assert ours == transformers_text(name, messages.messages, messages.tools, asks, **options)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=10)
@given(data=st.data())
def test_a_conversation_of_one_sample_is_the_whole_rendering(name: str, data: st.DataObject) -> None:
    make = maker(name)
    chat = make.settler.settled(data.draw(conversations(reasons=make.traits.thinks)), Counter())
    samples = make.render(chat, Counter())
    messages = plain_messages(chat, chat.system)
    thinks = chat.turns[samples[-1].turns[-1]].reasoning is not None
    options = {"enable_thinking": thinks} if make.traits.has_switch else {}
    whole = transformers_text(name, messages.messages, messages.tools, False, **options)
    if name in ("qwen3_2507_thinking", "qwq"):
        return  # the prompts of these open a thought that they do not show afterwards
    assert samples[-1].text == whole


def _settled_learnt(name: str, chat: Any) -> list[str]:
    return ["".join(piece.text for piece in sample.pieces) for sample in maker(name).samples(chat, Counter())]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3_instruct_2507"])
@settings(max_examples=10)
@given(chat=conversations(reasons=False, calls=False))
def test_templates_that_keep_everything_need_a_second_sample_for_odd_borders_only(name: str, chat: Any) -> None:
    odd = [turn for turn in chat.turns[:-1] if turn.role == "assistant" and turn.text[:1].isspace()]
    assert len(_settled_learnt(name, chat)) == 1 + len(odd)
