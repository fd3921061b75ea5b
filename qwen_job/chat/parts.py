"""One learnt turn with its prompt, and the parts of a long conversation without rendering a prompt for each turn.

That would take quadratic time. Where a template writes turns alike whatever follows them, as those without reasoning
do, a prompt is how the whole begins. It is not taken for granted: each answer must begin with the header with which a
prompt ends; and the first turns, each at twice the place of the one before, and the last are rendered and must be the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from qwen_job.chatml import IM_END, IM_START

# Fewer learnt turns than this are rendered one by one.
LONG = 32


class Part(NamedTuple):
    """One learnt turn: the prompt for it, what is only ``shown`` after that, what is learnt, and what follows it.

    The prompt is how ``text`` begins, ``size`` characters of it: parts of one rendering share it. ``ends``: how many
    ends of turns the prompt has up to the learnt turn before this one.
    """

    turn: int
    text: str
    size: int
    shown: str
    learnt: str
    after: str
    ends: int = 0

    @property
    def prompt(self) -> str:
        """What a server builds before the turn."""
        return self.text[: self.size]

    @property
    def whole(self) -> str:
        """The text up to the end of the turn."""
        return self.prompt + self.shown + self.learnt

    @property
    def end(self) -> int:
        """The length of that text."""
        return self.size + len(self.shown) + len(self.learnt)

    def continues(self, before: Part) -> bool:
        """Tell whether the prompt begins with the whole of the part before."""
        if self.text is before.text:  # both are cut from it
            return before.end <= self.size
        return self.prompt.startswith(before.whole)

    def without(self, mark: str) -> tuple[str, str, str, str]:
        """Return prompt, shown, learnt and after without a mark, to compare."""
        if not mark:
            return self.prompt, self.shown, self.learnt, self.after
        prompt, shown, learnt, after = (text.replace(mark, "") for text in self.without(""))
        return prompt, shown, learnt, after


def long_parts(roles: Sequence[str], learnt: Sequence[int], render: Callable[[int], Part]) -> list[Part] | None:
    """Return the part of each learnt turn; None if they must be rendered one by one.

    Args:
        roles: of all turns.
        learnt: the indices of the turns of the assistant that are learnt.
        render: returns the part of a turn.
    """
    last = render(learnt[-1])
    text = last.whole + last.after
    header = last.prompt[last.prompt.rfind(IM_START) :]
    answers = [number for number, role in enumerate(roles[: learnt[-1] + 1]) if role == "assistant"]
    begins = _places(text, header)
    if last.shown or not header or len(begins) != len(answers):
        return None
    where = dict(zip(answers, begins, strict=True))
    parts = [_cut(text, number, where[number] + len(header)) for number in learnt]
    checked = {0, len(learnt) - 1, *(1 << power for power in range((len(learnt) - 1).bit_length()))}
    if any(parts[at].without("") != render(learnt[at]).without("") for at in sorted(checked)):
        return None
    return parts


def _places(text: str, header: str) -> list[int]:
    places, at = list[int](), text.find(header) if header else -1
    while at >= 0:
        places.append(at)
        at = text.find(header, at + len(header))
    return places


def _cut(text: str, turn: int, at: int) -> Part:
    """Return the part of a turn whose text begins at ``at``."""
    following = text.find(IM_START, at)
    until = len(text) if following < 0 else following
    end = text.rfind(IM_END, at, until) + len(IM_END)
    return Part(turn, text, at, "", text[at:end], text[end:until])
