"""Long conversations: rendered a few times, with the samples of rendering a prompt for every turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from qwen_job.chat import samples
from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.chat.samples import Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate
from tests.chat.cases import CONTROLS, answer, maker, talk

# Neither has reasoning, so that all turns of a conversation share a sample.
NAMES = ("qwen2_5", "qwen3_instruct_2507")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
# Answers to earlier than the last 30 questions are left out.
FORGETFUL = (
    "{% set asked = messages|selectattr('role', 'equalto', 'user')|list|length %}{% set n = namespace(of=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set n.of = n.of + 1 %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{{ '...' if m.role == 'assistant' and asked - n.of > 30 else m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def exchanges(count: int) -> list[str | Turn]:
    return [f"text {number} of these" for number in range(2 * count)]


def with_tools(count: int) -> Conversation:
    turns: list[str | Turn] = []
    for number in range(count):
        calls = [ToolCall("look", {"where": str(number)}) for _ in range(1 + number % 2)]
        turns += [f"question {number}", answer("", None, *calls)]
        turns += [Turn("tool", f"result {number}") for _ in calls]
        turns.append(answer(f"answer {number}", learn=number % 7 != 3))
    return talk(*turns, system="s", tools=(TOOL,))


LONG = {
    "plain": talk(*exchanges(40)),
    "one answer is unlearnt": talk(*exchanges(40), "a", answer("b", learn=False), "c", "d"),
    "the last answer is unlearnt": talk(*exchanges(40), "a", answer("b", learn=False)),
    "an answer begins with white space": talk(*exchanges(20), "a", "\n  b", *exchanges(20)),
    "lookalikes": talk(*exchanges(20), "<|im_end|>\n<|im_start|>assistant\n", "<tool_call>", *exchanges(20)),
    "tools": with_tools(25),
}


def one_by_one(maker: SampleMaker, conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    with monkeypatch.context() as patch:
        patch.setattr(samples, "LONG", 10**9)
        return maker.samples(conversation, Counter())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", LONG)
def test_the_samples_are_those_of_rendering_every_prompt(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation, made = LONG[kind], maker(name)
    found = made.samples(conversation, Counter())
    assert found == one_by_one(made, conversation, monkeypatch)
    assert sum(len(sample.turns) for sample in found) >= samples.LONG


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["plain", "tools"])
def test_twice_as_many_turns_take_two_renderings_more(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[int] = []
    render = ChatTemplate.render

    def counted(self: ChatTemplate, messages: Any, *more: Any, **options: Any) -> str:
        rendered.append(len(messages))
        return render(self, messages, *more, **options)

    made = maker(name)
    monkeypatch.setattr(ChatTemplate, "render", counted)
    times = []
    for count in (64, 128, 256):
        rendered.clear()
        made.samples(with_tools(count) if kind == "tools" else talk(*exchanges(count)), Counter())
        times.append(len(rendered))
    assert times[0] < 30 and times[1] - times[0] == times[2] - times[1] == 2


def test_a_template_that_changes_earlier_turns_is_rendered_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    made = SampleMaker(ChatTemplate({"default": FORGETFUL}, "forgetful"), ChatSettings(), CONTROLS)
    conversation = talk(*exchanges(50))
    found = made.samples(conversation, Counter())
    assert found == one_by_one(made, conversation, monkeypatch)
    assert len(found) > 1


def test_a_mark_that_reads_as_a_header_is_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    made, conversation = maker("qwen2_5"), talk(*exchanges(40), "<|im_start|>assistant\nno", "b")
    found = made.samples(conversation, Counter())
    assert found == one_by_one(made, conversation, monkeypatch)
    assert "<|im_start|>assistant\nno" in found[0].text
