"""Outlines give the samples that rendering gives, for conversations of the same structure with other words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.chat.outline import Outlines, filled
from qwen_job.chat.samples import SampleMaker
from qwen_job.chat.template import ChatTemplate, Unrenderable
from tests.chat.cases import ALL, CONTROLS, SHIPPED, answer, maker, talk, template
from tests.chat.generated import conversations, texts


def rendered(make: SampleMaker, conversation: Conversation) -> list[list[tuple[str, bool, bool]]]:
    samples = make.render(conversation, Counter())
    return [[(piece.text, piece.learnt, piece.control) for piece in sample.pieces] for sample in samples]


def settled(make: SampleMaker, conversation: Conversation) -> Conversation:
    return make.settler.settled(conversation, Counter())


def outlined(outlines: Outlines, conversation: Conversation) -> Any:
    found = outlines.find(conversation)
    return filled(*found) if found else None


def told_apart(conversation: Conversation, texts: list[str]) -> Conversation:
    """Return the conversation with other words."""
    source = iter(texts * 99)
    turns = [turn._replace(text=next(source) if turn.text else "") for turn in conversation.turns]
    return conversation._replace(turns=tuple(turns))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=8)
@given(data=st.data())
def test_an_outline_gives_what_rendering_gives(name: str, data: st.DataObject) -> None:
    make = maker(name)
    outlines = Outlines(make)
    reasons = make.traits.thinks
    chats = data.draw(st.lists(conversations(reasons=reasons), min_size=1, max_size=3))
    for chat in [*chats, *chats, told_apart(chats[0], data.draw(st.lists(texts(), min_size=1)))]:
        one = settled(make, chat)
        try:
            wanted = rendered(make, one)
        except Unrenderable:
            assert outlines.find(one) is None
            continue
        found = outlined(outlines, one)
        assert found is None or found == wanted


def calling(city: str, days: int, text: str = "see") -> Conversation:
    tool = {"type": "function", "function": {"name": "look", "description": f"Look in {city}.", "parameters": {}}}
    call = ToolCall("look", {"city": city, "days": days, "on": True, "more": [city], "map": {city: 1}, "f": 0.5})
    turns = ("where", answer(text, None, call), Turn("tool", f"found {city}"), answer("There."))
    return talk(*turns, tools=(tool,))


@pytest.mark.parametrize("name", SHIPPED)
def test_calls_with_other_tools_and_arguments_share_an_outline(name: str) -> None:
    make = maker(name)
    outlines = Outlines(make)
    for city, days in (("a", 1), ("b", 2), ("c", 3), ("d", 4)):  # two to begin with, two where arguments are read
        outlines.find(settled(make, calling(city, days)))
    other = settled(make, calling('"Ü" \\x', 77))
    assert outlined(outlines, other) == rendered(make, other)


def test_a_structure_is_rendered_once() -> None:
    make = maker("qwen3")
    outlines = Outlines(make)
    for text in "abcdef":
        outlines.find(settled(make, talk(text, "yes")))
    calls: list[str] = []
    original = make.render
    make.render = lambda *given: calls.append("") or original(*given)  # type: ignore[method-assign,func-returns-value]
    assert outlines.find(settled(make, talk("g", "no"))) is not None
    assert calls == []


def kept(outlines: Outlines, make: SampleMaker, conversation: Conversation) -> Any:
    """Find a conversation as a writer does: what is not found is rendered and kept; return the pieces."""
    found = outlines.find(conversation)
    if found is None:
        counts: Counter[str] = Counter()
        outlines.keep(make.render(conversation, counts), counts)
    return filled(*found) if found else None


def renderings(outlines: Outlines, make: SampleMaker, number: int, first: str = "a") -> int:
    """Return how often the second conversation of a new structure is rendered, which must be right."""
    calls: list[str] = []
    original = make.render
    kept(outlines, make, settled(make, talk(first, "yes", options={"number": number})))
    make.render = lambda *given: calls.append("") or original(*given)  # type: ignore[method-assign,func-returns-value]
    other = settled(make, talk("b", "no", options={"number": number}))
    found = kept(outlines, make, other)
    make.render = original  # type: ignore[method-assign]
    assert found is None or found == rendered(make, other)
    return len(calls)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_new_outline_of_a_sound_template_is_checked_by_the_conversation_before(name: str) -> None:
    make = maker(name)
    outlines = Outlines(make)
    assert [renderings(outlines, make, number) for number in range(40)] == [2] * 32 + [1] * 8
    assert outlines._kept == 0


def test_a_text_that_the_template_may_read_is_rendered_itself() -> None:
    make = maker("qwen3")
    outlines = Outlines(make)
    for _ in range(3):
        assert outlines.find(settled(make, talk("<tool_response>", "yes"))) is None


_READER = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ 'long: ' if m.content|length > 5 and m.role == 'user' }}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def test_a_template_that_reads_the_text_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    make = SampleMaker(ChatTemplate({"default": _READER}, "reader"), maker("qwen3").settings, CONTROLS)
    outlines = Outlines(make)
    for number in range(3 * 4096):
        found = outlines.find(settled(make, talk("a" if number < 9 else "long enough", "b")))
    assert found is None
    assert "one by one" in caplog.text


def test_a_template_that_was_wrong_once_is_always_checked_by_both() -> None:
    make = SampleMaker(ChatTemplate({"default": _READER}, "reader"), maker("qwen3").settings, CONTROLS)
    outlines = Outlines(make)
    wrong = settled(make, talk("long enough", "b"))
    assert [kept(outlines, make, wrong) for _ in range(3)] == [None] * 3
    assert {renderings(outlines, make, number) for number in range(40)} == {2}


def test_a_conversation_before_that_differs_proves_nothing() -> None:
    make = SampleMaker(ChatTemplate({"default": _READER}, "reader"), maker("qwen3").settings, CONTROLS)
    outlines = Outlines(make)
    for number in range(40):
        renderings(outlines, make, number)
    assert renderings(outlines, make, 40) == 1
    assert renderings(outlines, make, 41, "long enough") == 2


def test_memory_stays_flat_with_many_structures() -> None:
    make = maker("qwen3")
    outlines = Outlines(make)
    for number in range(5000):
        outlines.find(talk("a", "b", options={"number": number}))
        outlines.keep([], Counter())
    assert len(outlines._known) <= 4096
    for number in range(8):
        outlines.find(talk("a" * (1 << 20), "b", options={"more": number}))
        outlines.keep([], Counter())
    assert outlines._kept <= 1 << 22


def test_the_templates_differ() -> None:
    assert len({template(name).sha256 for name in ALL}) == len(ALL)
