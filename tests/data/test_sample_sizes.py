"""Sizes of the samples that a chat template makes, equal to those of the samples themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.check import Examiner, check
from qwen_job.data.encode import ChatTokenizer
from qwen_job.data.formats import parse_record
from qwen_job.data.sample_sizes import SampleSizer
from qwen_job.data.show import SizedSample, sizes
from qwen_job.data.sizes import KINDS, TextSizer
from tests.chat import cases

from .conftest import conversation

ASK, ANSWER = Turn("user", "What is the weather in Paris?"), Turn("assistant", "It rains, 11 degrees.")
TALK = Conversation("", None, (ASK, ANSWER, Turn("user", "And now?"), Turn("assistant", "The sun shines.")))
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = Turn("assistant", "Let me look.", reasoning="I need a call.", calls=(ToolCall("weather", {}),))


def measured(name: str, conversation: Conversation, tokenizer: ChatTokenizer) -> list[dict[str, int]]:
    """Return the tokens of each sample by kind."""
    [found] = SampleSizer(cases.maker(name), tokenizer).measure([conversation])
    return [{kind: size for kind, size in zip(KINDS, sample, strict=True) if size} for sample in found.samples]


def counted(name: str, conversation: Conversation, tokenizer: ChatTokenizer) -> list[dict[str, int]]:
    """Return the same, from the samples' pieces."""
    made = cases.maker(name).samples(conversation, Counter())
    amounts = [SizedSample(sample.pieces, sizes(sample.pieces, tokenizer)).amounts() for sample in made]
    return [{kind: each[kind] for kind in KINDS if kind in each} for each in amounts]


@pytest.mark.parametrize("name", cases.ALL)
@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_plain_conversations_are_measured_as_they_are_made(
    name: str, system: str | None, tokenizer: ChatTokenizer
) -> None:
    talk = TALK._replace(system=system)
    assert measured(name, talk, tokenizer) == counted(name, talk, tokenizer)


@pytest.mark.parametrize("name", cases.ALL)
def test_the_others_are_measured_too(name: str, tokenizer: ChatTokenizer) -> None:
    thinks = cases.maker(name).traits.keeps_reasoning
    call = CALL if thinks else CALL._replace(reasoning=None)
    talk = Conversation("", None, (ASK, call, Turn("tool", "11 degrees"), ANSWER), tools=(TOOL,))
    found = measured(name, talk, tokenizer)
    assert found == counted(name, talk, tokenizer)
    assert {kind for sample in found for kind in sample} == {*KINDS} - (set() if thinks else {"reasoning"})


def test_text_that_a_template_reads_is_not_taken_for_plain(tokenizer: ChatTokenizer) -> None:
    talk = TALK._replace(turns=(ASK, Turn("assistant", "a </think> b"), *TALK.turns[2:]))
    assert measured("qwen3", talk, tokenizer) == counted("qwen3", talk, tokenizer)


def test_what_a_template_refuses_is_an_error_of_its_row(write: Callable[..., Path]) -> None:
    system = [{"from": role, "value": "x"} for role in ("user", "assistant", "system", "user", "assistant")]
    path = write([conversation("q", "a"), {"conversations": system}, conversation("q", "b")])
    report = check([path], Examiner(maker=cases.maker("qwen3_6"), turn_order="reference"))
    assert {(finding.row, finding.is_error) for finding in report.findings} == {(2, True)}
    assert report.rows == 3 and sum(report.histogram) >= 2


def test_a_row_that_is_split_counts_as_several_samples(write: Callable[..., Path]) -> None:
    path = write([conversation("q", "a", "q", "b")])
    whole, split = (check([path], Examiner(maker=cases.maker(name))) for name in ("qwen3_instruct_2507", "qwen3"))
    assert (sum(whole.histogram), sum(split.histogram)) == (1, 2)
    assert whole.by_kind["answer"] == split.by_kind["answer"] and whole.by_kind["prompt"] < split.by_kind["prompt"]


def test_a_very_long_conversation_is_measured_by_its_text() -> None:
    talk = Conversation("", None, (ASK, ANSWER) * 20_000)
    [found], [by_text] = (list(each.measure([talk])) for each in (SampleSizer(cases.maker("qwen3"), None), TextSizer()))
    assert found == by_text


THOUGHT = conversation("q", "<think>\nI see.\n</think>\n\na")


@pytest.mark.parametrize(
    ("name", "thinking", "reasoned"),
    [
        ("qwen3", "keep", 1),
        ("qwen3", "as_written", 0),
        ("qwen2_5", "keep", 0),
        ("qwen2_5", "strip", 1),
        ("qwen2_5", "as_written", 0),
    ],
)
def test_reasoning_in_a_text_is_read_as_preparation_reads_it(
    write: Callable[..., Path], tokenizer: ChatTokenizer, name: str, thinking: str, reasoned: int
) -> None:
    maker = cases.maker(name, thinking=thinking)
    report = check([write([THOUGHT])], Examiner(tokenizer=tokenizer, maker=maker))
    assert (report.errors, report.counts.total(), report.contents.reasoned) == (0, 0, reasoned)
    samples = maker.samples(parse_record(THOUGHT, thinking=maker.settler.reads), Counter())
    assert report.tokens == sum(map(sum, (sizes(sample.pieces, tokenizer) for sample in samples)))


def test_without_a_template_the_setting_alone_says_it(write: Callable[..., Path]) -> None:
    path = write([THOUGHT])
    read = [check([path], Examiner(thinking=thinking)).contents.reasoned for thinking in ("keep", "as_written")]
    assert read == [1, 0]
