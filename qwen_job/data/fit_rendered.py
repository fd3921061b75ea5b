"""Fit conversations that a chat template writes into ``max_length``: whole turns go first, and no call is cut.

Every step renders the shortened conversation again, so that what remains is what a server would build. The result of a
tool never stays without its call. What was cut is counted. How many turns fit is guessed from the tokens of their
texts, so that a long conversation is rendered a few times, not once for every turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.samples import Sample
from qwen_job.chat.template import Unrenderable
from qwen_job.data.cut_points import Part, exchanges_of, most, steps_of
from qwen_job.data.sizes import TextSizer
from qwen_job.data.writers import TemplateWriter
from qwen_job.run.sections import DataSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fit_rendered(
    conversation: Conversation, turns: tuple[int, ...], writer: TemplateWriter, spec: DataSpec, counts: Counter[str]
) -> list[NDArray[np.int32]]:
    """Return the documents for a sample that is too long; ``conversation`` is settled, ``turns`` are those it learns.

    Truncation leaves out the oldest exchanges, then the last steps of the last one; of what remains, it cuts the middle
    of the last question, and the end of the answer. A call or a thought without its answer is dropped instead.

    Splitting makes pieces of as many exchanges as fit, each with the system prompt and the tools. An exchange that is
    too long, such as the trace of an agent, is split between its steps; each piece then begins with the question, and
    with the step before as context where there is room. Every turn is learnt once.
    """
    return _Fitting(writer, spec, counts).fit(_only(conversation, turns))


class _Fitting:
    def __init__(self, writer: TemplateWriter, spec: DataSpec, counts: Counter[str]) -> None:
        self._writer, self._spec, self._counts = writer, spec, counts
        self._sizer = TextSizer(writer.tokenizer)

    def fit(self, conversation: Conversation) -> list[NDArray[np.int32]]:
        self._counts["long_samples"] += 1
        if self._spec.long_samples == "drop":
            self._counts["dropped"] += 1
            return []
        if self._spec.long_samples == "truncate":
            return self._truncated(conversation)
        self._counts["split"] += 1
        documents = [document for piece in self._pieces(conversation) for document in self._truncated(piece)]
        self._counts["split_pieces"] += len(documents)
        return documents

    def _encoded(self, conversation: Conversation) -> list[tuple[Sample, NDArray[np.int32]]]:
        """Return the samples of a conversation and their tokens; none if the template does not render it."""
        try:
            samples = self._writer.maker.render(conversation, Counter())
        except Unrenderable:
            return []
        return [(sample, self._writer.encode([self._writer.document(sample)])[0]) for sample in samples]

    def _fits(self, conversation: Conversation) -> bool:
        """Tell whether a sample of all turns fits: rendered for its last learnt turn, which the whole sample leads to.

        Rendering what a server asks before every learnt turn would take the square of their number.
        """
        last = max((number for number, turn in enumerate(conversation.turns) if turn.learn), default=None)
        found = self._encoded(_only(conversation, (last,))) if last is not None else []
        return bool(found) and found[-1][1].size <= self._spec.max_length

    def _room(self, conversation: Conversation) -> _Room:
        return _Room(conversation, self._sizer, self._spec.max_length, self._fits)

    def _pieces(self, conversation: Conversation) -> list[Conversation]:
        """Group exchanges, or the steps of one that is too long: as many as fit."""
        parts, at = exchanges_of(conversation.turns), 0
        room = self._room(conversation)
        pieces: list[Conversation] = []
        while at < len(parts):
            first = next(n for n in range(at, len(parts)) if room.learns(parts[n]))  # the last part is learnt
            kept = room.from_the_end(parts[at : first + 1])
            start = first + 1 - kept
            if kept:
                end = first + 1 + room.more(parts[start:], kept)
                # What follows the last learnt part would not be read; the next piece may need it as context.
                end = next(n for n in range(end, start, -1) if room.learns(parts[n - 1]))
            elif smaller := self._smaller(parts[first], conversation):
                parts[first : first + 1] = smaller
                continue
            else:
                start, end = first, first + 1
            # Turns that are not learnt themselves, and for which there is no room before those that are.
            self._counts["turns_cut"] += max(0, parts[start].before - parts[at].start)
            pieces.append(room.piece(parts[start:end]))
            at = end
        return pieces

    def _smaller(self, part: Part, conversation: Conversation) -> list[Part]:
        """Return what takes the place of a part that does not fit: its steps, or itself with less context."""
        if len(steps := steps_of(part, conversation.turns)) > 1:
            self._counts["exchanges_split"] += 1
            return steps
        return [part._replace(before=part.start)] if part.before < part.start else []

    def _truncated(self, conversation: Conversation) -> list[NDArray[np.int32]]:
        before = self._encoded(conversation)
        if before and max(signed.size for _, signed in before) <= self._spec.max_length:
            return [signed for _, signed in before]
        shorter = self._with_fewer_turns(conversation)
        found = self._encoded(shorter)
        kept = self._cut(*found[-1]) if found else None
        if kept is None or not before:
            self._counts["dropped"] += 1
            return []
        self._counts["truncated"] += 1
        self._counts["turns_cut"] += len(conversation.turns) - len(shorter.turns)
        self._counts["tokens_cut"] += before[-1][1].size - kept.size
        return [kept]

    def _with_fewer_turns(self, conversation: Conversation) -> Conversation:
        """Leave out the oldest exchanges, then the last steps, as many as needed; one learnt turn remains."""
        parts = exchanges_of(conversation.turns)
        room = self._room(conversation)
        kept = room.from_the_end(parts[1:]) if len(parts) > 1 else 0
        shorter = room.piece(parts[-max(kept, 1) :])
        if kept:
            return shorter
        learnt = [number for number, turn in enumerate(shorter.turns) if turn.learn]

        def ends(count: int) -> Conversation:
            return shorter._replace(turns=shorter.turns[: learnt[count - 1] + 1])

        return ends(max(1, most(lambda count: self._fits(ends(count)), len(learnt) - 1, len(learnt) - 1)))

    def _cut(self, sample: Sample, signed: NDArray[np.int32]) -> NDArray[np.int32] | None:
        """Cut the middle of the last question and the end of the answer; None where that would leave a lie."""
        most = self._spec.max_length
        if signed.size <= most:
            return signed
        signed = self._shorter_question(sample, signed)
        if signed.size <= most:
            return signed
        kinds = [piece.kind for piece in sample.pieces if piece.learnt]
        first = int(np.flatnonzero(signed >= 0)[0])
        # A call or a thought that ends early would be a lie; a text that does is only unfinished.
        if {*kinds} != {"answer"} or len(sample.turns) > 1 or first >= most:
            return None
        self._counts["answers_cut"] += 1
        return signed[:most]

    def _shorter_question(self, sample: Sample, signed: NDArray[np.int32]) -> NDArray[np.int32]:
        spans = self._spans(sample)
        questions = [span for span, text in spans if text.startswith("user\n") and text.strip() != "user"]
        if not questions:
            return signed
        start, end = questions[-1]
        least = self._spec.max_length // 8
        kept = max(min(end - start, least), end - start - (signed.size - self._spec.max_length))
        head = (kept + 1) // 2
        return np.concatenate([signed[: start + head], signed[end - (kept - head) :]])

    def _spans(self, sample: Sample) -> list[tuple[tuple[int, int], str]]:
        """Return, for each text of the prompt, its place among the tokens."""
        spans: list[tuple[tuple[int, int], str]] = []
        at = 0
        for piece in sample.pieces:
            length = len(self._writer.ids(piece.text, piece.control))
            if not piece.control and not piece.learnt:
                spans.append(((at, at + length), piece.text))
            at += length
        return spans


def _only(conversation: Conversation, turns: tuple[int, ...]) -> Conversation:
    """Return a conversation up to the last of ``turns``, in which only those are learnt."""
    kept = [turn._replace(learn=number in turns) for number, turn in enumerate(conversation.turns[: turns[-1] + 1])]
    return conversation._replace(turns=tuple(kept))


class _Room:
    """How many of the parts of a conversation fit into a sample; guessed from the tokens of their texts first."""

    def __init__(
        self, conversation: Conversation, sizer: TextSizer, max_length: int, fits: Callable[[Conversation], bool]
    ) -> None:
        self._conversation, self._fits = conversation, fits
        (sizes,) = sizer.measure([conversation])
        first = len(sizes.turns) - len(conversation.turns)
        self._ends = np.cumsum([0, *sizes.turns[first:]])
        self._room = max_length - sum(sizes.turns[:first])

    def learns(self, part: Part) -> bool:
        """Tell whether a turn of a part is learnt."""
        return any(turn.learn for turn in self._conversation.turns[part.start : part.end])

    def piece(self, parts: Sequence[Part]) -> Conversation:
        """Return the conversation of adjacent parts, with the context of the first."""
        turns = self._conversation.turns
        return self._conversation._replace(turns=(*parts[0].opening(turns), *turns[parts[0].start : parts[-1].end]))

    def more(self, parts: Sequence[Part], kept: int) -> int:
        """Return how many parts fit behind the first ``kept``, which do."""
        opening = self._size(*parts[0].question) + self._size(parts[0].before, parts[0].start)
        ends = [opening + self._size(parts[0].start, part.end) for part in parts[kept:]]
        guess = int(np.searchsorted(ends, self._room, "right"))
        return most(lambda more: self._fits(self.piece(parts[: kept + more])), guess, len(ends))

    def from_the_end(self, parts: Sequence[Part]) -> int:
        """Return how many parts fit, from the last on; 0: not even that."""
        sizes = [self._size(part.start, parts[-1].end) for part in reversed(parts)]
        guess = int(np.searchsorted(sizes, self._room, "right"))
        return most(lambda count: self._fits(self.piece(parts[-count:])), guess, len(parts))

    def _size(self, start: int, end: int) -> int:
        return int(self._ends[end] - self._ends[start])
