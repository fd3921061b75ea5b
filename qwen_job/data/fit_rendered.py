"""Fit conversations that a chat template writes into ``max_length``: whole turns go first, and no call is cut.

Every step renders the shortened conversation again, so that what remains is what a server would build. The result of a
tool never stays without its call. What was cut is counted.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chat.samples import Sample
from qwen_job.chat.template import Unrenderable
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
    """
    return _Fitting(writer, spec, counts).fit(_only(conversation, turns))


class _Fitting:
    def __init__(self, writer: TemplateWriter, spec: DataSpec, counts: Counter[str]) -> None:
        self._writer, self._spec, self._counts = writer, spec, counts

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

    def _encoded(self, conversation: Conversation) -> tuple[Sample, NDArray[np.int32]] | None:
        """Return the last sample of a conversation and its tokens; None if the template does not render it."""
        try:
            samples = self._writer.maker.render(conversation, Counter())
        except Unrenderable:
            return None
        return (samples[-1], self._writer.encode([self._writer.document(samples[-1])])[0]) if samples else None

    def _fits(self, conversation: Conversation) -> bool:
        found = self._encoded(conversation)
        return found is not None and found[1].size <= self._spec.max_length

    def _pieces(self, conversation: Conversation) -> list[Conversation]:
        """Group exchanges, as many as fit, each group with the system prompt and the tools."""
        pieces: list[list[Turn]] = []
        for exchange in _exchanges(conversation.turns):
            if pieces and self._fits(conversation._replace(turns=(*pieces[-1], *exchange))):
                pieces[-1] += exchange
            else:
                pieces.append([*exchange])
        kept = [piece for piece in pieces if any(turn.learn for turn in piece)]
        self._counts["pieces_without_answer"] += len(pieces) - len(kept)
        return [conversation._replace(turns=tuple(piece)) for piece in kept]

    def _truncated(self, conversation: Conversation) -> list[NDArray[np.int32]]:
        before = self._encoded(conversation)
        if before is not None and before[1].size <= self._spec.max_length:
            return [before[1]]
        shorter = self._with_fewer_turns(conversation)
        found = self._encoded(shorter)
        kept = self._cut(*found) if found is not None else None
        if kept is None or before is None:
            self._counts["dropped"] += 1
            return []
        self._counts["truncated"] += 1
        self._counts["turns_cut"] += len(conversation.turns) - len(shorter.turns)
        self._counts["tokens_cut"] += before[1].size - kept.size
        return [kept]

    def _with_fewer_turns(self, conversation: Conversation) -> Conversation:
        exchanges = _exchanges(conversation.turns)
        while len(exchanges) > 1 and any(turn.learn for turn in _flat(exchanges[1:])):
            exchanges = exchanges[1:]
            shorter = conversation._replace(turns=_flat(exchanges))
            if self._fits(shorter):
                return shorter
        turns = _flat(exchanges)
        learnt = [number for number, turn in enumerate(turns) if turn.learn]
        for last in reversed(learnt[:-1]):
            turns = turns[: last + 1]
            if self._fits(conversation._replace(turns=turns)):
                break
        return conversation._replace(turns=turns)

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


def _exchanges(turns: tuple[Turn, ...]) -> list[tuple[Turn, ...]]:
    """Return the turns by question: a user's turn and all up to the next that follows an answer."""
    exchanges: list[list[Turn]] = []
    for turn in turns:
        if not exchanges or (turn.role == "user" and exchanges[-1][-1].role != "user"):
            exchanges.append([])
        exchanges[-1].append(turn)
    return [tuple(exchange) for exchange in exchanges]


def _flat(exchanges: list[tuple[Turn, ...]]) -> tuple[Turn, ...]:
    return tuple(turn for exchange in exchanges for turn in exchange)
