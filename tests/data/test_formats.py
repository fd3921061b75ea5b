"""Every layout becomes the same Conversation."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_job.chat.conversation import Turn
from qwen_job.data.formats import RecordError, detect_format, parse_record
from qwen_job.data.order import order_problems
from qwen_job.resources import resource

TURNS = (Turn("user", "q"), Turn("assistant", "a"))
PAIR = [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
HISTORY = (Turn("user", "x"), Turn("assistant", "y"), *TURNS)


@pytest.mark.parametrize(
    ("layout", "record", "system", "turns"),
    [
        ("reference", {"id": "1", "conversations": PAIR}, None, TURNS),
        ("reference", {"conversations": [{"from": "system", "value": "s"}, *PAIR]}, "s", TURNS),
        (
            "sharegpt",
            {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "s",
            TURNS,
        ),
        (
            "messages",
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "s",
            TURNS,
        ),
        ("alpaca", {"instruction": "q", "input": "", "output": "a"}, None, TURNS),
        ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, None, (Turn("user", "q\ni"), TURNS[1])),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["x", "y"]]}, None, HISTORY),
        ("query_response", {"query": "q", "response": "a", "system": "s"}, "s", TURNS),
        ("prompt_completion", {"prompt": "q", "completion": "a", "system": "s"}, "s", TURNS),
    ],
)
def test_reads(layout: str, record: dict[str, Any], system: str | None, turns: tuple[Turn, ...]) -> None:
    assert detect_format(record) == layout
    for name in ("auto", layout):
        conversation = parse_record(record, name)
        assert (conversation.system, conversation.turns) == (system, turns)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ([], "row"),
        ("text", "row"),
        ({}, "row"),
        ({"text": "x"}, "row"),
        ({"conversations": None}, "conversations"),
        ({"conversations": []}, "conversations"),
        ({"conversations": ["x"]}, "conversations[0]"),
        ({"messages": [{"role": "system", "content": "s"}]}, "messages"),
        ({"conversations": [{"from": "user"}]}, "conversations[0]"),
        ({"conversations": [{"from": "judge", "value": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"from": ["user"], "value": "x"}]}, "conversations[0].from"),
        ({"conversations": [{"from": "user", "value": 5}]}, "conversations[0].value"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content"),
        ({"instruction": None, "output": "a"}, "instruction"),
        ({"query": "q", "response": "a", "history": [["x"]]}, "history[0]"),
        ({"query": "q", "response": "a", "system": {"a": 1}}, "system"),
    ],
)
def test_names_the_field_of_what_it_cannot_read(record: Any, field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record(record)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "text", "text": "q"}], {}, "type 'image_url'"),
        ([{"type": "image", "image": "a.png"}, {"type": "text", "text": "q"}], {}, "a part of type 'image'"),
        ([{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "q"}], {}, "a part of type 'video'"),
        ("<image>What is it?", {"images": ["a.png"]}, "images: holds media"),
    ],
)  # fmt: skip
def test_a_vision_language_row_is_refused(content: Any, more: dict[str, Any], message: str) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    with pytest.raises(RecordError, match=rf"{message}.*, and only text is trained; "):
        parse_record({"messages": turns, **more})


def test_a_named_layout_is_not_guessed() -> None:
    with pytest.raises(RecordError, match="messages: is missing"):
        parse_record({"conversations": PAIR}, "messages")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([("user", "q"), ("assistant", "a")], []),
        ([("user", "q"), ("assistant", "a"), ("user", "q")], []),
        ([("assistant", "a")], ["turn 1 (assistant)"]),
        ([("user", "q"), ("user", "q"), ("assistant", "a")], ["turn 2 (user)"]),
        ([("user", " \n"), ("assistant", "")], ["turn 1 (user)", "turn 2 (assistant)"]),
        ([("user", "\u200b"), ("assistant", "\ufeff \u200d\ufffd")], ["turn 1 (user)", "turn 2 (assistant)"]),
        ([("user", "\u200bq\u200b"), ("assistant", "\U0001f44d\ufe0f")], []),
        ([("user", "q")], ["turns"]),
        ([("user", "\ud83d"), ("assistant", "a")], ["turn 1"]),
    ],
)
def test_order(texts: list[tuple[str, str]], expected: list[str]) -> None:
    record = {"messages": [{"role": role, "content": text} for role, text in texts]}
    assert [problem.field for problem in order_problems(parse_record(record))] == expected


def test_the_demo_teaches_one_answer_to_each_question() -> None:
    import json

    answers: dict[str, str] = {}
    for name in ("demo.json", "demo_eval.json"):
        for record in json.loads(resource("configs", "data", name).read_text(encoding="utf-8")):
            conversation = parse_record(record, "reference")
            assert not list(order_problems(conversation))
            first, second = conversation.turns[:2]
            assert answers.setdefault(first.text, second.text) == second.text
    assert answers["你好"] == "你好！我是 qwen-job 训练的小助手，很高兴为你服务。"
