"""The examples of formats in docs/training.md are one conversation, and its table names every format."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data.formats import parse_record
from qwen_job.data.order import order_problems
from qwen_job.facts import choices
from tests.support.tool_rows import without_ids

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {"training.md": "### Formats", "training.zh-CN.md": "### 数据格式"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
EXPECTED = Conversation(
    "",
    None,
    (
        Turn("user", "Is it raining in Paris?"),
        Turn("assistant", "", "I have to look.", (ToolCall("weather", {"city": "Paris"}),)),
        Turn("tool", "Rain, 11 °C"),
        Turn("assistant", "Yes, it is raining."),
    ),
    tools=({"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}},),
)


def section(page: str) -> str:
    """Return the text of the section about formats."""
    return (DOCS / page).read_text("utf-8").partition(f"{PAGES[page]}\n")[2].partition("\n## ")[0]


def examples(page: str) -> list[dict[str, Any]]:
    """Return the rows that the section shows."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section(page), re.DOTALL)]


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_are_one_conversation(page: str) -> None:
    rows = examples(page)
    assert len(rows) == 6
    for row in rows:
        read = without_ids(parse_record(row))
        assert [turn._replace(learn=None) for turn in read.turns] == list(EXPECTED.turns)
        assert read.tools == EXPECTED.tools and not read.unused and not list(order_problems(read))


@pytest.mark.parametrize("page", PAGES)
def test_only_the_completion_of_the_last_example_is_learnt(page: str) -> None:
    learns = [[turn.learn for turn in parse_record(row).turns if turn.role == "assistant"] for row in examples(page)]
    assert learns == [[None, None], [None, True], *[[None, None]] * 3, [False, None]]


@pytest.mark.parametrize("page", PAGES)
def test_the_table_names_every_format(page: str) -> None:
    rows = [line for line in section(page).splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows))) == {*get_args(choices.Format)} - {
        "auto"
    }
