"""What the rows of a data set hold is counted, and reported in one line."""

from __future__ import annotations

from collections import Counter

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.understood import FORMAT, HOLDS, describe_read, read_counts, understood

ASK, ANSWER = Turn("user", "q"), Turn("assistant", "a")


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (Conversation("1", "s", (ASK, ANSWER)), []),
        (Conversation("", None, (ASK, ANSWER), tools=({},)), ["tools"]),
        (Conversation("", None, (ASK, ANSWER._replace(calls=(ToolCall("f", {}),)))), ["calls"]),
        (Conversation("", None, (ASK, Turn("tool", "4"), ANSWER._replace(reasoning="so"))), ["results", "reasoning"]),
        (Conversation("", None, (ASK, ANSWER._replace(learn=False))), ["switches of what is learnt"]),
        (Conversation("", None, (ASK, ANSWER), options={"enable_thinking": True}), ["options of the template"]),
    ],
)
def test_names_what_is_beside_plain_turns(conversation: Conversation, expected: list[str]) -> None:
    assert list(understood(conversation)) == expected


def test_describes_rows_by_format_and_by_what_they_hold() -> None:
    counts = Counter({FORMAT + "messages": 1000, HOLDS + "tools": 812, HOLDS + "reasoning": 5, "other": 3})
    assert describe_read(read_counts(counts)) == (
        "rows read: 1,000 as messages; of 1,000 rows, 812 with tools, 5 with reasoning"
    )
    assert describe_read(read_counts(Counter({FORMAT + "alpaca": 2, FORMAT + "messages": 3}))) == (
        "rows read: 2 as alpaca, 3 as messages"
    )
