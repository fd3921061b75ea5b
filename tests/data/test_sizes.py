"""Tokens of conversations by turn and by kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.encode import ChatTokenizer, encode_conversation
from qwen_job.data.sizes import KINDS, TextSizer, estimate

ASK, ANSWER = Turn("user", "What is the weather in Paris?"), Turn("assistant", "It rains, 11 degrees.")
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_plain_conversations_have_the_tokens_that_training_counts(tokenizer: ChatTokenizer) -> None:
    conversation = Conversation("", "Be brief.", (ASK, ANSWER, ASK, ANSWER))
    [sizes] = TextSizer(tokenizer).measure([conversation])
    encoded = encode_conversation(conversation, tokenizer, system_prompt="")
    # The frame is measured with one role's name; the names differ by a few tokens with this tokenizer.
    assert abs(sum(sizes.turns) - len(encoded.input_ids)) <= 8 * 5
    assert sum(sizes.samples[0]) == sum(sizes.turns)
    assert dict(zip(KINDS, sizes.samples[0], strict=True))["answer"] == sum(label >= 0 for label in encoded.labels)


def test_turns_are_counted_from_the_system_prompt() -> None:
    turns = (ASK, ANSWER)
    sizes = list(TextSizer().measure([Conversation("", system, turns) for system in ("Be brief.", "", None)]))
    assert [len(each.turns) for each in sizes] == [3, 2, 3]
    assert sizes[0].turns[1:] == sizes[1].turns


def test_reasoning_calls_tools_and_results_are_of_their_kinds() -> None:
    call = Turn("assistant", "", reasoning="I need a call.", calls=(ToolCall("weather", {"city": "Paris"}),))
    plain = Conversation("", None, (ASK, ANSWER))
    rich = plain._replace(turns=(ASK, call, Turn("tool", "11 degrees"), ANSWER))
    sizes = [each.samples[0] for each in TextSizer().measure([plain, rich, rich._replace(tools=(TOOL,))])]
    assert sizes[0][1:3] == (0, 0) and min(sizes[1]) > 0
    assert sizes[1][1] >= estimate("I need a call.") and sizes[1][2] >= estimate('{"city": "Paris"}')
    assert sizes[2][0] - sizes[1][0] >= estimate(json.dumps(TOOL)) and sizes[2][1:] == sizes[1][1:]


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("word" * 100, 100), ("天气很好" * 30, 80), ("天气 is", 2)])
def test_tokens_are_estimated_by_script(text: str, tokens: int) -> None:
    assert estimate(text) == tokens


def test_halves_of_surrogate_pairs_are_counted(tokenizer: ChatTokenizer) -> None:
    [sizes] = TextSizer(tokenizer).measure([Conversation("", None, (Turn("user", "a\udc00"), ANSWER))])
    assert sizes.turns[1] > 0
