"""Accept conversations in which user and assistant do not alternate, if ``data.turn_order`` asks for it.

reference  as in QwenLM's finetune.py: a first turn that is not the user's is skipped; the others are kept unchanged,
           each in its own frame
join       turns before the first question are skipped, adjacent turns of one role are joined with a newline, and a
           last question (or result of a tool) without an answer is dropped

Results of tools are never joined; nor are answers of which only one is to be learnt, or the second of which has
reasoning. Either way a conversation without an answer is left out. Everything is counted.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.data.order import is_invisible, misplaced_turn

# What is counted -> its description in reports.
COUNTED = {
    "turns_skipped": "turns before the first question skipped",
    "turns_out_of_order": "turns kept behind a turn of the same role",
    "turns_joined": "turns joined to the one before",
    "turns_unanswered": "last questions without an answer dropped",
    "without_answer": "conversations without an answer left out",
}


def arrange(conversation: Conversation, turn_order: str, counts: Counter[str]) -> Conversation | None:
    """Return the conversation with its turns arranged by ``turn_order``, None if it has no answer.

    Changes are added to ``counts`` under the names in ``COUNTED``. ``strict`` returns the conversation unchanged.
    """
    turns = conversation.turns
    if turn_order == "strict" or _is_regular(turns):
        return conversation
    skipped = _skipped(turns, turn_order)
    kept = list(turns[skipped:])
    if turn_order == "join":
        kept = _joined(kept)
        counts["turns_joined"] += len(turns) - skipped - len(kept)
        unanswered = _unanswered(kept)
        kept = kept[: len(kept) - unanswered]
        counts["turns_unanswered"] += unanswered
    counts["turns_out_of_order"] += sum(one.role == other.role != "tool" for one, other in pairwise(kept))
    counts["turns_skipped"] += skipped
    if "assistant" not in [turn.role for turn in kept]:
        counts["without_answer"] += 1
        return None
    return conversation._replace(turns=tuple(kept))


def _is_regular(turns: tuple[Turn, ...]) -> bool:
    """Tell whether user and assistant alternate, calls of tools and their results included, up to an answer."""
    return turns[-1].role == "assistant" and misplaced_turn(turns) is None


def _skipped(turns: tuple[Turn, ...], turn_order: str) -> int:
    if turn_order == "reference":
        return int(turns[0].role not in ("user", "system"))
    return next((number for number, turn in enumerate(turns) if turn.role in ("user", "system")), len(turns))


def _unanswered(turns: list[Turn]) -> int:
    """Return how many turns at the end have no answer: a question, or results of tools."""
    return next((back for back, turn in enumerate(reversed(turns)) if turn.role not in ("user", "tool")), len(turns))


def _joined(turns: list[Turn]) -> list[Turn]:
    """Join adjacent turns of one role; an empty turn stays separate, and is reported as an error."""
    runs: list[list[Turn]] = []
    for turn in turns:
        if runs and _joins(runs[-1][-1], turn):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return [_one_turn(run) if len(run) > 1 else run[0] for run in runs]


def _joins(before: Turn, turn: Turn) -> bool:
    if before.role != turn.role or turn.role == "tool" or before.calls or turn.reasoning:
        return False
    if (before.learn is False) != (turn.learn is False):
        return False
    return not is_invisible(before.text) and (bool(turn.calls) or not is_invisible(turn.text))


def _one_turn(run: list[Turn]) -> Turn:
    text = "\n".join(turn.text for turn in run if turn.text)
    last: dict[str, Any] = {"calls": run[-1].calls, "learn": next((t.learn for t in run if t.learn is not None), None)}
    return run[0]._replace(text=text, **last)
