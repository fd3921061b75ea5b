"""The summary of reasoning, tools, system prompts and switches."""

from __future__ import annotations

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.contents import MOST, Contents

ASK = Turn("user", "q")


def contents(*conversations: Conversation) -> Contents:
    """Count some conversations."""
    counted = Contents()
    for each in conversations:
        counted.add(each)
    return counted


def test_plain_conversations_need_no_line() -> None:
    plain = Conversation("", None, (ASK, Turn("assistant", "a")))
    assert list(contents(plain, plain).lines()) == []
    assert list(contents(plain._replace(system="s"), plain._replace(system="s")).lines()) == []


@pytest.mark.parametrize(
    ("second", "line"),
    [
        (Turn("assistant", "a", reasoning="r"), "reasoning: 1 of 2 (50.0%) conversations, 1 of 2 (50.0%) answers; "),
        (
            Turn("assistant", "", calls=(ToolCall("f", {}),)),
            "tools: 0 of 2 (0.0%) conversations, 0 sets of tools, 1 calls",
        ),
        (Turn("assistant", "a", learn=False), "switches of the data: 1 of 2 answers are not trained, 0 are marked"),
    ],
)
def test_what_some_conversations_hold_is_counted(second: Turn, line: str) -> None:
    both = [Conversation("", None, (ASK, answer)) for answer in (Turn("assistant", "a"), second)]
    assert next(contents(*both).lines()).startswith(line)


def test_tools_prompts_and_options_that_differ_are_counted() -> None:
    rows = [
        Conversation("", "s", (ASK, Turn("assistant", "a")), tools=({"a": 1},), options={"enable_thinking": False}),
        Conversation("", "t", (ASK, Turn("assistant", "a")), tools=({"b": 1},)),
        Conversation("", None, (ASK, Turn("assistant", "a")), tools=({"b": 1},)),
    ]
    lines = list(contents(*rows).lines())
    assert lines[0] == "tools: 3 of 3 (100.0%) conversations, 2 sets of tools, 0 calls, 0 results"
    assert lines[1] == "template options of rows: enable_thinking=false 1"
    assert lines[2] == "2 different system prompts; 1 of 3 (33.3%) conversations without one"


def test_calls_are_listed_by_tool_and_memory_is_bounded() -> None:
    many = tuple(ToolCall(f"f{number}", {}) for number in range(MOST + 5))
    rows = [Conversation("", str(number), (ASK, Turn("assistant", "", calls=many))) for number in range(MOST + 5)]
    counted = contents(*rows[:2])
    assert len(counted.called) == MOST and counted.calls == 2 * len(many)
    assert f"f0 2, f1 2, f2 2, f3 2, f4 2, f5 2, f6 2, f7 2 and {MOST - 8} more" in list(counted.lines())[1]
    systems = contents(*(row._replace(turns=(ASK,)) for row in rows))
    assert len(systems.systems) == MOST and next(iter(systems.lines())).startswith(f"{MOST:,} or more different")
