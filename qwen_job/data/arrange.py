"""Accept conversations in which user and assistant do not alternate, if ``data.turn_order`` asks for it.

reference  as in QwenLM's finetune.py: a first turn that is not the user's is skipped; the others are kept unchanged,
           each in its own frame
join       turns before the first question are skipped, adjacent turns of one role are joined with a newline, and a
           last question without an answer is dropped

Either way a conversation without an answer is left out. Everything is counted.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from qwen_job.data.conversation import Conversation, Turn
from qwen_job.data.formats import is_invisible

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
        unanswered = bool(kept) and kept[-1].role == "user"
        kept = kept[: len(kept) - unanswered]
        counts["turns_unanswered"] += unanswered
        counts["turns_joined"] += len(turns) - skipped - unanswered - len(kept)
    else:
        counts["turns_out_of_order"] += sum(one.role == other.role for one, other in pairwise(kept))
    counts["turns_skipped"] += skipped
    if "assistant" not in [turn.role for turn in kept]:
        counts["without_answer"] += 1
        return None
    return conversation._replace(turns=tuple(kept))


def _is_regular(turns: tuple[Turn, ...]) -> bool:
    """Tell whether user and assistant alternate, or a system turn is among them, which is an error anyway."""
    roles = [turn.role for turn in turns]
    return "system" in roles or (
        len(roles) % 2 == 0 and roles[::2].count("user") == roles[1::2].count("assistant") == len(roles) // 2
    )


def _skipped(turns: tuple[Turn, ...], turn_order: str) -> int:
    if turn_order == "reference":
        return int(turns[0].role != "user")
    return next((number for number, turn in enumerate(turns) if turn.role == "user"), len(turns))


def _joined(turns: list[Turn]) -> list[Turn]:
    """Join adjacent turns of one role; an empty turn stays separate, and is reported as an error."""
    runs: list[list[Turn]] = []
    for turn in turns:
        if (
            runs
            and runs[-1][0].role == turn.role
            and not is_invisible(turn.text)
            and not is_invisible(runs[-1][-1].text)
        ):
            runs[-1].append(turn)
        else:
            runs.append([turn])
    return [Turn(run[0].role, "\n".join(turn.text for turn in run)) for run in runs]
