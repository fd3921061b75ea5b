"""check: each rule finds its case at its row, and good data gives nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data import ChatTokenizer
from qwen_job.data.check import Examiner, check
from qwen_job.data.contents import Contents
from qwen_job.data.rules import RULES, Limits
from qwen_job.resources import resource

from .conftest import conversation

TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
]


def calling(name: str = "weather", city: Any = "Paris", tools: Any = TOOLS) -> dict[str, Any]:
    """Return a row with a call of a tool, in OpenAI's form."""
    call = {"type": "function", "function": {"name": name, "arguments": json.dumps({"city": city})}}
    messages = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": messages, "tools": tools}


def answered(*names: str) -> dict[str, Any]:
    """Return a row with two calls that have these results, and an answer."""
    row = calling()
    row["messages"][1]["tool_calls"] *= 2
    row["messages"] += [{"role": "tool", "name": name, "content": "11"} for name in names]
    row["messages"].append({"role": "assistant", "content": "It rains."})
    return row


LONG = "The ship sailed across the quiet sea towards an island that nobody on board had ever seen before, and "
CASES: dict[str, Any] = {
    "malformed": {"conversations": "x"},
    "order": conversation("q", " "),
    "encoding": conversation("q", "a\udc00"),
    "unused_key": {"images": "a.png", **conversation("q", "a")},
    "without_system": {"system": "", **conversation("q", "a")},
    "special_token": conversation("q <|im_end|>", "a"),
    "call_as_text": conversation("q", 'Well. <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'),
    "thought_as_text": conversation("q", "So it is 4. </think> It is 4."),
    "control_character": conversation("q", "a\u200bb\x07"),
    "long_turn": conversation("word " * 600, "a"),
    "long_sample": conversation(*[f"{number} {'word ' * 400}." for number in range(8)]),
    "secret": conversation("q", "hf_" + "aBcDeF" * 6),
    "personal": conversation("q", "13812345678"),
    "unrelated": conversation("Please tell me about the history of ships", "今天天气很好我们去公园玩"),
    "truncated": conversation("q", LONG * 5 + "then it"),
    "no_answer": conversation("q", "<think>\nwhat?\n</think>\n\n"),
    "nothing_learnt": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": 0}]
    },
    "unknown_tool": calling("wether"),
    "arguments": calling(city=3),
    "tool_schema": calling(tools=[{"name": "weather", "parameters": {"type": "dict"}}]),
    "call_without_result": answered("weather"),
    "result_without_call": answered("weather", "weather", "weather"),
}


@pytest.mark.parametrize("rule", list(CASES))
def test_finds(rule: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([conversation("good", "fine"), CASES[rule]]), encoding="utf-8")
    report = check([path], Examiner(limits=Limits(512, 2048)))
    assert {(finding.row, finding.rule) for finding in report.findings} == {(2, rule)}
    assert bool(report.errors) == RULES[rule][0]


def test_duplicates_are_found_across_files_and_layouts(write: Callable[..., Path]) -> None:
    first = write([conversation("q", "a"), conversation("q", "b")])
    second = write([{"query": "q ", "response": "a"}], "more.jsonl")
    report = check([first, second], Examiner())
    assert [(f.file, f.row) for f in report.findings] == [(str(second), 1)]
    assert f"the same as {first}:1" in report.findings[0].message


@pytest.mark.parametrize(
    ("question", "answer", "rule"),
    [
        ("Please say this again", "Please say this again", "unrelated"),
        ("请把这句话翻译成英文：今天天气很好", "The weather is very nice today, is it not?", None),
        ("How do I say thanks in Chinese, please?", "你可以说谢谢，也可以说多谢您", None),
        ("q", "first, ", "truncated"),
        ("q", "```python\nprint(1)", "truncated"),
        ("q", "```python\nprint(1)\n```", None),
        ("q", LONG * 5 + "then it sank.", None),
        ("q", "\n".join(["- a short item of a list"] * 30), None),
    ],
)
def test_answers(write: Callable[..., Path], question: str, answer: str, rule: str | None) -> None:
    report = check([write([conversation(question, answer)])], Examiner())
    assert [finding.rule for finding in report.findings] == ([rule] if rule else [])


def test_counts_tokens_exactly_and_draws_them(tokenizer: ChatTokenizer) -> None:
    from qwen_job.data.encode import encode_conversation
    from qwen_job.data.formats import parse_record
    from qwen_job.data.rows import read_rows

    demo = resource("configs", "data", "demo.json")
    report = check([demo], Examiner(tokenizer=tokenizer), exact=True)
    samples = [parse_record(value) for _, value in read_rows(demo)]
    sizes = [
        len(encode_conversation(sample, tokenizer, system_prompt="You are a helpful assistant.").input_ids)
        for sample in samples
    ]
    # Role names differ in length with this tokenizer: a few tokens a turn.
    assert abs(report.tokens - sum(sizes)) <= 8 * report.turns
    assert sum(report.histogram) == report.rows == 72 and not report.counts


def test_findings_are_limited_but_counted(write: Callable[..., Path]) -> None:
    report = check([write([conversation("same", "same")] * 30)], Examiner(), limit=3)
    assert report.counts["duplicate"] == 29 and len(report.findings) == 3


def test_tools_that_could_not_be_compared_are_reported(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path]
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    assert check([write([conversation("q", "a")])], Examiner()).schemas_compared
    monkeypatch.setattr(Contents, "add", lambda contents, _: setattr(contents, "with_tools", 1))
    assert not check([write([conversation("q", "a")])], Examiner()).schemas_compared


def test_a_thought_that_never_ends_is_reported(write: Callable[..., Path]) -> None:
    rows = [conversation("q", "<think>\nLet me see"), conversation("q", "ok <think> x")]
    report = check([write(rows)], Examiner())
    assert [finding.row for finding in report.findings if finding.rule == "no_answer"] == [1]


def test_marks_in_text_are_what_their_turn_makes_of_them(write: Callable[..., Path]) -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    turns = [{"role": "user", "content": call}, {"role": "assistant", "content": f"So: {call} Done.", "loss": 0},
             {"role": "user", "content": "q"}, {"role": "assistant", "content": "a <tool_response> b"}]  # fmt: skip
    report = check([write([{"messages": turns}])], Examiner())
    assert [(found.rule, found.field, "is learnt" in found.message) for found in report.findings] == [
        ("special_token", "turn 1 (user)", False),
        ("special_token", "turn 2 (assistant)", False),
        ("special_token", "turn 4 (assistant)", True),
    ]


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        ('<think>r</think>So. <tool_call>{"name": "f"}</tool_call>', {"call_as_text": 1}),
        ('<tool_call>{"name": "f"}</tool_call> I have called it.', {"call_as_text": 1}),
        ("<think>\nr\n</think>\n\nFirst.</think> Then.", {"thought_as_text": 1}),
        ("<think>\nr\n</think>\n\nThen.", {}),
    ],
)
def test_only_what_stays_text_is_reported(answer: str, rules: dict[str, int], write: Callable[..., Path]) -> None:
    assert dict(check([write([conversation("q", answer)])], Examiner()).counts) == rules


def test_a_call_that_the_reader_takes_out_of_the_text_is_not_reported(write: Callable[..., Path]) -> None:
    row = calling()
    row["messages"][1] = {"role": "assistant", "content": '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'}
    assert not check([write([row])], Examiner()).counts
