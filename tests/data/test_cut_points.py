"""Where conversations may be cut, and how many parts fit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwen_job.chat.conversation import Turn
from qwen_job.data.cut_points import exchanges_of, most, steps_of


def _turns(roles: str) -> tuple[Turn, ...]:
    names = {"u": "user", "a": "assistant", "t": "tool"}
    return tuple(Turn(names[role], str(number)) for number, role in enumerate(roles))


def test_an_exchange_begins_with_a_question_that_follows_an_answer() -> None:
    assert [(part.start, part.end) for part in exchanges_of(_turns("uuatauaa"))] == [(0, 5), (5, 8)]


def test_a_step_is_a_turn_of_the_assistant_with_its_results_and_repeats_question_and_step_before() -> None:
    turns = _turns("uuatatta")
    (exchange,) = exchanges_of(turns)
    steps = steps_of(exchange, turns)
    assert [(step.start, step.end) for step in steps] == [(0, 4), (4, 7), (7, 8)]
    assert [[turn.text for turn in step.opening(turns)] for step in steps] == [[], list("0123"), list("01456")]


def test_the_first_exchange_and_a_step_are_not_divided_further() -> None:
    turns = _turns("ua")
    (exchange,) = exchanges_of(turns)
    assert steps_of(exchange, turns) == [exchange]


@given(limit=st.integers(1, 3000), answer=st.integers(0, 3000), guess=st.integers(0, 4000))
def test_most_finds_the_largest_count_and_a_right_guess_asks_twice(limit: int, answer: int, guess: int) -> None:
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= answer

    assert most(fits, guess, limit) == min(answer, limit)
    assert len(asked) == len(set(asked)) <= 26
    assert all(1 <= count <= limit for count in asked)
    if guess == answer and answer:
        assert len(asked) <= 2
