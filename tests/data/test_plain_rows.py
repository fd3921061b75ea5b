"""The short way for plain rows reads what the long way reads, and leaves everything else to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_job.data.chunk_encoder import read_row
from qwen_job.data.formats import detect_format
from qwen_job.data.plain_rows import plain_row
from qwen_job.data.understood import understood

TEXTS = st.sampled_from(
    [
        "hi",
        "",
        " ",
        "\u200b",
        "你好",
        "\ud800",
        "- a",
        "<think>\nx\n</think>\n\ny",
        "</think>",
        "\U0001f600",
        None,
        3,
        ["a"],
    ]
)
ROLES = st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool", "bot", "developer", "User", None, 1])
# Mostly right, so that whole conversations come about; with a key too many now and then.
TURNS = st.builds(
    lambda keys, role, text, more: {keys[0]: role, keys[1]: text, **more},
    st.sampled_from([("from", "value"), ("role", "content"), ("role", "value")]),
    ROLES,
    TEXTS,
    st.sampled_from([{}, {}, {}, {"loss": 1}, {"name": "x"}]),
)
ALTERNATING = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).flatmap(
    lambda pairs: st.sampled_from(
        [
            [{keys[0]: role, keys[1]: text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
            for keys in (("from", "value"), ("role", "content"))
            for roles in (("user", "assistant"), ("human", "gpt"), ("system", "user"))
        ]
    )
)
ROWS = st.builds(
    lambda key, turns, more: {key: turns, **more},
    st.sampled_from(["conversations", "messages"]),
    ALTERNATING | st.lists(TURNS | st.just("x"), max_size=4) | st.none(),
    st.sampled_from([{}, {"id": "7"}, {"id": 7}, {"id": None}, {"source": "x"}, {"system": "s"}, {"messages": []},
                     {"id": "7", "tools": []}]),
)  # fmt: skip


def user(text: str) -> dict[str, str]:
    return {"from": "user", "value": text}


def assistant(text: str) -> dict[str, str]:
    return {"from": "assistant", "value": text}


@settings(max_examples=600)
@given(row=ROWS, thinking=st.sampled_from(["keep", "as_written"]))
def test_what_it_reads_is_what_the_long_way_reads(row: dict[str, Any], thinking: str) -> None:
    found = plain_row(row)
    if found is not None:
        layout, conversation = found
        assert layout == detect_format(row)
        assert conversation == read_row(row, layout, thinking=thinking)
        assert understood(conversation) == ()


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        ({"id": "1", "conversations": [user("hi"), assistant("你好")]}, "reference"),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "**you**"}]}, "sharegpt"),
        (
            {"messages": [{"role": role, "content": "hi"} for role in ("system", "user", "assistant", "user")]},
            "messages",
        ),
    ],
)
def test_most_rows_are_read_the_short_way(row: dict[str, Any], layout: str) -> None:
    found = plain_row(row)
    assert found is not None and found[0] == layout
    assert found[1] == read_row(row, layout)


@pytest.mark.parametrize(
    "turns",
    [
        [user("hi")],
        [assistant("hi"), user("hi")],
        [user("hi"), assistant(" \u200b")],
        [user("hi"), assistant("\ud800")],
        [user("hi"), assistant("<think>a</think>b")],
        [user("hi"), {**assistant("hi"), "loss": 0}],
        [user("hi"), {"from": "assistant", "value": ["hi"]}],
        [user("hi"), {"from": "tool", "value": "hi"}, assistant("hi")],
        [{"from": "system", "value": "a"}, {"from": "system", "value": "b"}, user("hi"), assistant("hi")],
    ],
)
def test_what_is_unusual_is_left_to_the_long_way(turns: list[Any]) -> None:
    assert plain_row({"conversations": turns}) is None


@pytest.mark.parametrize("row", ["text", None, [], {}, {"conversations": "[]"}, {"conversations": [user("a")], "a": 1}])
def test_what_is_no_plain_row_is_left_to_the_long_way(row: object) -> None:
    assert plain_row(row) is None
