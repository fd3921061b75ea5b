"""One row as a model sees it: the samples that it becomes, what of them is learnt, and how much of each kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import plain_messages
from qwen_job.chat.samples import Piece, Sample, SampleMaker
from qwen_job.chat.template import Unrenderable
from qwen_job.data.check import Examiner
from qwen_job.data.encode import ChatTokenizer
from qwen_job.data.one_row import read_row
from qwen_job.data.rules import RowFinding
from qwen_job.errors import DataError

KINDS = ("prompt", "reasoning", "call", "answer")


class SizedSample(NamedTuple):
    """A sample, and the size of each of its pieces: tokens, or characters without a tokenizer."""

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]

    def amounts(self) -> dict[str, int]:
        """Return the size of each kind that occurs, of all, and of what is learnt."""
        found: Counter[str] = Counter()
        for piece, size in zip(self.pieces, self.sizes, strict=True):
            found[piece.kind] += size
            found["learnt"] += size * piece.learnt
        return {
            "total": sum(self.sizes),
            **{kind: found[kind] for kind in KINDS if found[kind]},
            "learnt": found["learnt"],
        }


class ShownRow(NamedTuple):
    """A row that can be trained on. ``notes``: what was done to it, or left out of its samples."""

    conversation: Conversation
    samples: tuple[SizedSample, ...]
    findings: tuple[RowFinding, ...]
    notes: tuple[str, ...]


def show_row(path: Path, row: int, examiner: Examiner, maker: SampleMaker, tokenizer: ChatTokenizer | None) -> ShownRow:
    """Read one row and make its samples.

    Raises:
        DataError: there is no such row, or it cannot be trained on; has the message of ``data check``.
        EnvironmentFault: a permission or a package is missing.
    """
    value = read_row(path, row)
    [(_, conversation, _, findings)] = examiner.examine(path, [(row, value)])
    errors = [finding for finding in findings if finding.is_error]
    if errors:
        raise DataError("\n".join(map(str, errors)))
    if conversation is None:
        raise DataError(f"{path}:{row}: turns: hold no answer to learn from, so turn_order leaves the row out")
    counts: Counter[str] = Counter()
    try:
        samples = maker.samples(conversation, counts) or [_unlearnt(conversation, maker)]
    except Unrenderable as error:
        raise DataError(f"{path}:{row}: {error.field}: {error.message}") from error
    sized = tuple(SizedSample(sample.pieces, sizes(sample.pieces, tokenizer)) for sample in samples)
    return ShownRow(conversation, sized, tuple(findings), tuple(_notes(conversation, samples, counts, maker)))


def sizes(pieces: Sequence[Piece], tokenizer: ChatTokenizer | None) -> tuple[int, ...]:
    """Return the tokens of each piece, or its characters if there is no tokenizer."""
    if tokenizer is None:
        return tuple(len(piece.text) for piece in pieces)
    texts = [piece.text.encode("utf-8", "replace").decode() for piece in pieces if not piece.control]
    counted = map(len, tokenizer.encode_batch(texts))
    return tuple(1 if piece.control else next(counted) for piece in pieces)


def _unlearnt(conversation: Conversation, maker: SampleMaker) -> Sample:
    """Return a conversation of which nothing is learnt as one sample."""
    settled = maker.settler.settled(conversation, Counter())
    messages = plain_messages(settled, settled.system)
    text = maker.template.render(messages.messages, messages.tools, **messages.options)
    return Sample((Piece(text, "prompt", False, False),), ())


# What a sample maker counts -> its meaning for one row.
_DONE = {
    "thoughts_stripped": "reasoning is left out (data.thinking: strip)",
    "thinking_without_reasoning": "the row asks for thinking, but an answer has no reasoning: it is trained as with "
    "thinking off (data.empty_think: learn trains it as an empty thought)",
    "split_at_turns": "a server would build another prompt for later turns, so the row is split there "
    "(data.several_thoughts: join trains it as one)",
    "joined_thoughts": "turns are joined although a server would build another prompt (data.several_thoughts: join)",
    "looks_like_control_tokens": "text that looks like control tokens is trained as plain characters",
    "nothing_learnt": "no turn is learnt, so training leaves the row out",
}


def _notes(
    conversation: Conversation, samples: Sequence[Sample], counts: Counter[str], maker: SampleMaker
) -> Iterator[str]:
    yield from (meaning for name, meaning in _DONE.items() if counts[name])
    if ignored := maker.settler.unknown_options(conversation):
        yield f"the template ignores chat_template_kwargs: {', '.join(name[:40] for name in ignored)}"
    answers = [number for number, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    learnt = {number for sample in samples for number in sample.turns}
    unlearnt = [str(number + 1) for number in answers if number not in learnt]
    if learnt and unlearnt:
        yield f"answers that are not learnt: turn {', '.join(unlearnt)}"
    last = max(learnt, default=len(conversation.turns))
    if last + 1 < len(conversation.turns):
        yield f"turns after the last learnt one (turn {last + 1}) are in no sample"
