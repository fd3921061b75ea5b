"""No content of a row is dropped without a word, whatever the layout; keys without meaning are listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_job.data import ChatTokenizer, open_prepared, prepare_data
from qwen_job.data.check import Examiner, check
from qwen_job.data.clean import clean
from qwen_job.data.formats import RecordError, parse_record
from qwen_job.data.keys import UNTRAINABLE
from qwen_job.data.rows import read_rows
from qwen_job.errors import DataError
from qwen_job.run.sections import DataFile, DataSpec

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ROWS: dict[str, dict[str, Any]] = {
    "reference": {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "messages": {"messages": [Q, A]},
    "alpaca": {"instruction": "q", "output": "a"},
    "query_response": {"query": "q", "response": "a"},
}


@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tool_choice", "required"),
        ("images", ["a.png"]),
        ("rejected", "no"),
        ("rationale", "because"),
        ("weight", 0),
        ("train", False),
        ("weight", 2.5),
        ("weight", float("nan")),
        ("context", "what the question is about"),
        ("Tools", "[{}]"),
        ("wholly_new", {"deep": [{"er": 0}]}),
        ("flag", False),
    ],
)
def test_content_of_a_row_that_would_be_lost_is_an_error(layout: str, key: str, value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record({**ROWS[layout], key: value})
    assert (caught.value.field, caught.value.rule) == (key, "unused_key")
    assert parse_record({**ROWS[layout], key: value}, "auto", frozenset({key})).unused == (key,)


@pytest.mark.parametrize(
    ("turns", "field"),
    [
        ([Q, {**A, "thoughts": "because"}], "messages[1].thoughts"),
        ([{**Q, "reasoning_content": "because"}, A], "messages[0].reasoning_content"),
        ([{**Q, "tool_calls": CALL}, A], "messages[0].tool_calls"),
        ([Q, {**A, "tool_call_id": "1"}], "messages[1].tool_call_id"),
        ([Q, {**A, "loss_mask": 0}], "messages[1].loss_mask"),
        ([Q, {**A, "loss": None, "weight": 0.5}], "messages[1].weight"),
        ([{**Q, "train": True}, A], "messages[0].train"),
        ([{**Q, "name": "Ann"}, A], "messages[0].name"),
        ([{**Q, "value": "another text"}, A], "messages[0].content"),
        ([{**Q, "content": [{"type": "text", "text": "q", "image": "x.png"}]}, A], "messages[0].content[0].image"),
        ([Q, {"role": "thought", "content": "so"}, A], "messages[1].role"),
    ],
)
def test_content_of_a_turn_that_would_be_lost_is_an_error(turns: list[Any], field: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record({"messages": turns})
    assert caught.value.field == field


@pytest.mark.parametrize("layout", ROWS)
def test_what_holds_nothing_or_changes_nothing_is_fine(layout: str) -> None:
    empty = {"tools": [], "images": None, "reasoning": " \n", "audio": {"bytes": None, "path": ""}, "weight": 1}
    assert parse_record({**ROWS[layout], **empty}).turns == parse_record(ROWS[layout]).turns
    repeated = parse_record({**ROWS[layout], "prompt": "q", "completion": "a"})
    assert set(repeated.unused) == {"prompt", "completion"}


def test_switches_that_say_what_happens_anyway_are_fine() -> None:
    turns = [{**Q, "train": False, "weight": 0}, {**A, "train": True, "weight": 1.0, "loss": 1, "tool_calls": None}]
    assert len(parse_record({"messages": turns}).turns) == 2


def test_a_misspelled_key_is_recognised() -> None:
    with pytest.raises(RecordError, match=r"does not use; remove the key, .*; did you mean 'history'\?$"):
        parse_record({**ROWS["alpaca"], "histroy": [["x", "y"]]})


def test_each_kind_says_what_to_do_today() -> None:
    for kind in UNTRAINABLE.values():
        for key in kind.keys:
            with pytest.raises(RecordError) as caught:
                parse_record({**ROWS["messages"], key: "content"})
            assert kind.advice in caught.value.message and f"data.ignore_keys: [{key}]" in caught.value.message
    with pytest.raises(RecordError, match="preference"):
        parse_record({"prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(RecordError, match="answers holds answers that are no turns, such as the calls in rows of xLAM"):
        parse_record({"query": "q", "answers": '[{"name": "f", "arguments": {}}]', "tools": "[]"})


def test_a_key_nested_without_end_is_an_error_of_its_row() -> None:
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    for key in ("id", "meta", "wholly_new"):
        with pytest.raises(RecordError, match="nested too deeply"):
            parse_record({**ROWS["messages"], key: deep}, "auto", frozenset({"wholly_new"}))
    with pytest.raises(RecordError, match="nested too deeply"):
        parse_record({"messages": [{"role": deep, "content": "q"}]})


def _with_images(tmp_path: Path, name: str) -> Path:
    seen = {"messages": [Q, {**A, "images": ["a.png"]}]}
    rows = [{"id": n, **row} for n, row in enumerate([seen, ROWS["messages"], {"messages": [Q, {**A, "loss": 0.5}]}])]
    path = tmp_path / name
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_check_clean_and_prepare_say_the_same(tiny: Path, tmp_path: Path, name: str) -> None:
    path = _with_images(tmp_path, name)
    report = check([path], Examiner())
    assert [(found.row, found.rule) for found in report.findings] == [(1, "unused_key"), (3, "malformed")]
    assert report.unused_keys == {"id": 1} and report.bad_rows == 2
    result = clean(path, tmp_path / "out.jsonl", Examiner())
    assert (result.kept, result.dropped) == (1, 2)
    (_, kept), *_ = read_rows(result.dropped_list.with_name("out.jsonl"))
    assert kept["id"] == 1
    with pytest.raises(DataError) as caught:
        prepare_data(DataSpec(train=(DataFile(path=path),)), tiny, tmp_path / "cache")
    assert f"{name}:1: messages[1].images" in str(caught.value)
    assert f"{name}:3: messages[1].loss" in str(caught.value)


def test_prepare_lists_keys_without_meaning_and_those_given_up(
    tiny: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    rows = [{"id": "1", "source": "s", **ROWS["messages"]}, {"messages": [{**Q, "mood": "glad"}, {**A, "mood": "sad"}]}]
    spec = DataSpec(train=(DataFile(path=write(rows)),), ignore_keys=("mood", "never_there"))
    stats = open_prepared(prepare_data(spec, tiny, tmp_path / "cache")).stats
    assert stats["unused_keys"] == {"id": 1, "source": 1, "mood": 1, "never_there": 0}


def test_an_empty_system_prompt_means_none_wherever_it_stands(
    tokenizer: ChatTokenizer, tiny: Path, tmp_path: Path, write: Callable[..., Path]
) -> None:
    from qwen_job.data.encode import encode_conversation

    turns = ROWS["messages"]["messages"]
    beside = {"system": "", "messages": turns}
    within = {"messages": [{"role": "system", "content": ""}, *turns]}
    both = [
        encode_conversation(parse_record(row), tokenizer, system_prompt="default").input_ids for row in (beside, within)
    ]
    assert both[0] == both[1] and "system" not in tokenizer.decode(both[0])
    for row in ({"system": None, "messages": turns}, {"messages": turns}):
        assert parse_record(row).system is None
    path = write([beside, within, {"messages": turns}])
    assert check([path], Examiner()).counts["without_system"] == 2
    stats = open_prepared(prepare_data(DataSpec(train=(DataFile(path=path),)), tiny, tmp_path / "cache")).stats
    assert stats["without_system"] == 2


def test_a_system_prompt_in_both_places_must_be_the_same() -> None:
    turns = [{"role": "system", "content": "inner"}, Q, A]
    with pytest.raises(RecordError) as caught:
        parse_record({"system": "outer", "messages": turns})
    assert caught.value.field == "system"
    for outer in ("inner", "", None):
        assert parse_record({"system": outer, "messages": turns}).system == "inner"


@pytest.mark.parametrize(
    ("instruction", "extra", "asked"),
    [("", "i", "i"), (" \n", "i", "i"), (None, "i", "i"), ("q", " ", "q"), ("q", "", "q"), ("q", "i", "q\ni")],
)
def test_an_alpaca_question_has_no_line_to_spare(instruction: str | None, extra: str, asked: str) -> None:
    assert parse_record({"instruction": instruction, "input": extra, "output": "a"}).turns[0].text == asked


@pytest.mark.parametrize(("key", "value"), [("input", 0), ("history", False), ("history", {}), ("system", 0)])
def test_a_field_of_a_wrong_type_is_an_error_also_when_it_is_falsy(key: str, value: Any) -> None:
    with pytest.raises(RecordError) as caught:
        parse_record({**ROWS["alpaca"], key: value})
    assert caught.value.field == key
