"""data.turn_order: conversations that do not take turns, taken as finetune.py takes them, or joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.data import ChatTokenizer, open_prepared, prepare_data
from qwen_job.data.arrange import COUNTED, arrange
from qwen_job.data.check import Examiner, check
from qwen_job.data.clean import clean
from qwen_job.data.order import order_problems
from qwen_job.errors import DataError
from qwen_job.run.sections import DataFile, DataSpec

ROLE = {"u": "user", "a": "assistant"}


def _talk(roles: str) -> Conversation:
    return Conversation("", None, tuple(Turn(ROLE[role], f"{role}{n}") for n, role in enumerate(roles)))


def _row(roles: str) -> dict[str, Any]:
    return {"conversations": [{"from": turn.role, "value": turn.text} for turn in _talk(roles).turns]}


@pytest.mark.parametrize(
    ("roles", "order", "texts", "counts"),
    [
        ("ua", "join", ["u0", "a1"], {}),
        ("aua", "reference", ["u1", "a2"], {"turns_skipped": 1}),
        ("aaua", "reference", ["a1", "u2", "a3"], {"turns_skipped": 1}),
        ("aaua", "join", ["u2", "a3"], {"turns_skipped": 2}),
        ("uua", "reference", ["u0", "u1", "a2"], {"turns_out_of_order": 1}),
        ("uua", "join", ["u0\nu1", "a2"], {"turns_joined": 1}),
        ("uaau", "reference", ["u0", "a1", "a2", "u3"], {"turns_out_of_order": 1}),
        ("uaauu", "join", ["u0", "a1\na2"], {"turns_joined": 2, "turns_unanswered": 1}),
        ("uau", "join", ["u0", "a1"], {"turns_unanswered": 1}),
        ("uau", "reference", ["u0", "a1", "u2"], {}),
        ("uu", "reference", None, {"turns_out_of_order": 1, "without_answer": 1}),
        ("u", "join", None, {"turns_unanswered": 1, "without_answer": 1}),
        ("a", "reference", None, {"turns_skipped": 1, "without_answer": 1}),
        ("aa", "join", None, {"turns_skipped": 2, "without_answer": 1}),
    ],
)
def test_arranges(roles: str, order: str, texts: list[str] | None, counts: dict[str, int]) -> None:
    counted: Counter[str] = Counter()
    arranged = arrange(_talk(roles), order, counted)
    assert (None if arranged is None else [turn.text for turn in arranged.turns]) == texts
    assert +counted == counts and set(counts) <= set(COUNTED)
    assert arrange(_talk(roles), "strict", counted) == _talk(roles)


@given(roles=st.text("ua", min_size=1, max_size=12), order=st.sampled_from(["reference", "join"]))
def test_whatever_is_taken_can_be_trained_on_and_no_text_is_lost(roles: str, order: str) -> None:
    counts: Counter[str] = Counter()
    arranged = arrange(_talk(roles), order, counts)
    if arranged is None:
        return
    assert not list(order_problems(arranged, order))
    texts = [text for turn in arranged.turns for text in turn.text.split("\n")]
    skipped = counts["turns_skipped"]
    assert texts == [turn.text for turn in _talk(roles).turns][skipped : skipped + len(texts)]
    assert order == "reference" or not list(order_problems(arranged))


CALL = Turn("assistant", "look", calls=(ToolCall("f", {}),))
RESULT, ASK, ANSWER = Turn("tool", "4"), Turn("user", "u"), Turn("assistant", "a")


@pytest.mark.parametrize(
    ("turns", "joined", "counts"),
    [
        ((ASK, CALL, RESULT, RESULT, ANSWER), None, {}),
        ((ASK, CALL), None, {}),
        ((ASK, ANSWER, Turn("system", "s"), ASK, ANSWER), None, {}),
        ((ASK, CALL, RESULT, RESULT), (ASK, CALL), {"turns_unanswered": 2}),
        (
            (ASK, ANSWER, CALL, RESULT, ANSWER),
            (ASK, CALL._replace(text="a\nlook"), RESULT, ANSWER),
            {"turns_joined": 1},
        ),
        ((ASK, ANSWER, ANSWER._replace(reasoning="so")), None, {"turns_out_of_order": 1}),
        ((ASK, ANSWER, ANSWER._replace(learn=False)), None, {"turns_out_of_order": 1}),
        ((ASK, ANSWER._replace(reasoning="so"), ANSWER), (ASK, Turn("assistant", "a\na", "so")), {"turns_joined": 1}),
        ((ASK, CALL, ANSWER), None, {"turns_out_of_order": 1}),
        ((RESULT, ASK, ANSWER), (ASK, ANSWER), {"turns_skipped": 1}),
    ],
)
def test_joins_only_what_one_turn_can_hold(
    turns: tuple[Turn, ...], joined: tuple[Turn, ...] | None, counts: dict[str, int]
) -> None:
    counted: Counter[str] = Counter()
    arranged = arrange(Conversation("", None, turns), "join", counted)
    assert arranged and arranged.turns == (turns if joined is None else joined)
    assert +counted == counts


def test_the_reference_order_gives_finetune_py_s_tokens(tokenizer: ChatTokenizer) -> None:
    from qwen_job.data.encode import encode_conversation

    arranged = arrange(_talk("auuaa"), "reference", Counter())
    assert arranged
    text = tokenizer.decode(encode_conversation(arranged, tokenizer, system_prompt="s").input_ids)
    frames = [("system", "s"), ("user", "u1"), ("user", "u2"), ("assistant", "a3"), ("assistant", "a4")]
    assert text == "".join(f"<|im_start|>{role}\n{value}<|im_end|>\n" for role, value in frames)


@pytest.mark.parametrize("max_length", [512, 32])
def test_prepare_counts_what_it_changed_and_check_and_clean_agree(
    tiny: Path, tmp_path: Path, write: Callable[..., Path], max_length: int
) -> None:
    path = write([_row(roles) for roles in ("ua", "aua", "uua", "uuaau", "u")])
    with pytest.raises(DataError, match=r"rows\.json:2: turn 1 \(assistant\).*data\.turn_order"):
        prepare_data(DataSpec(train=(DataFile(path=path),)), tiny, tmp_path / "cache")
    assert check([path], Examiner()).bad_rows == 4
    expected = {
        "reference": {"turns_skipped": 1, "turns_out_of_order": 3, "without_answer": 1},
        "join": {"turns_skipped": 1, "turns_joined": 3, "turns_unanswered": 2, "without_answer": 1},
    }
    for order, counts in expected.items():
        spec = DataSpec(train=(DataFile(path=path),), turn_order=order, max_length=max_length, long_samples="split")
        stats = open_prepared(prepare_data(spec, tiny, tmp_path / "cache")).stats
        assert {name: stats[name] for name in COUNTED if stats[name]} == counts
        assert stats["train"]["samples"] == 4
        report = check([path], Examiner(turn_order=order))
        assert not report.errors and +report.arranged == counts
        result = clean(path, tmp_path / f"{order}.json", Examiner(turn_order=order))
        assert (result.kept, result.dropped) == (4, 1)
