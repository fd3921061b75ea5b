"""Where a conversation may be cut: between exchanges, and between the steps of one exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from qwen_job.chat.conversation import Turn


class Part(NamedTuple):
    """The turns ``start`` to ``end`` of a conversation: an exchange, or a step of one.

    An exchange is a question and all up to the next question that follows an answer; a step is one turn of the
    assistant with the results of its calls.

    Attributes:
        question: for a later step of an exchange, the turns (start, end) of its question; it is empty otherwise.
        before: where the step before begins that is repeated as context; ``start``: none.
    """

    start: int
    end: int
    question: tuple[int, int]
    before: int

    def opening(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        """Return the turns that a piece beginning with this part repeats, none of them learnt."""
        context = (*turns[slice(*self.question)], *turns[self.before : self.start])
        return tuple(turn._replace(learn=False) for turn in context)


def exchanges_of(turns: Sequence[Turn]) -> list[Part]:
    """Return the exchanges of a conversation."""
    starts = [at for at, turn in enumerate(turns) if not at or (turn.role == "user" and turns[at - 1].role != "user")]
    return [Part(start, end, (0, 0), start) for start, end in zip(starts, [*starts[1:], len(turns)], strict=True)]


def steps_of(exchange: Part, turns: Sequence[Turn]) -> list[Part]:
    """Return the steps of an exchange; the first holds the question, and each other repeats the step before."""
    start, end = exchange.start, exchange.end
    starts = [at for at in range(start, end) if turns[at].role == "assistant"]
    if exchange.question != (0, 0) or len(starts) < 2:
        return [exchange]
    question, firsts = (start, starts[0]), [start, *starts[1:]]
    before = [start, starts[0], *starts[1:]]
    return [
        Part(first, last, question if number else (0, 0), before[number])
        for number, (first, last) in enumerate(zip(firsts, [*starts[1:], end], strict=True))
    ]


def most(fits: Callable[[int], bool], guess: int, limit: int) -> int:
    """Return the largest count up to ``limit`` that fits, 0 if 1 does not; a good ``guess`` saves calls of ``fits``."""
    low, high, step = 0, limit + 1, 1
    at = min(max(guess, 1), limit)
    while high - low > 1:
        if fits(at):
            low = at
        else:
            high = at
        at = low + step if high > limit else high - step if low == 0 else (low + high) // 2
        at, step = min(max(at, low + 1), high - 1), step * 2
    return low
