"""How many tokens the samples of conversations have that a chat template makes of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation, is_plain
from qwen_job.chat.samples import Piece, Sample, SampleMaker
from qwen_job.chat.template import Unrenderable
from qwen_job.data.encode import ChatTokenizer
from qwen_job.data.sizes import KINDS, Sizes, TextSizer

# A text's place in a shape; all that a turn of a plain conversation has besides its role and text.
_PLACE = re.compile("\ue000([0-9]+)\ue001")
# Each turn is rendered with all turns before it. Longer conversations are measured as one sample of their text.
_MOST_TURNS = 1000
# What templates look for in the text of a turn.
_READ_BY_TEMPLATES = ("<think>", "</think>", "<tool_response>")


class _SampleShape(NamedTuple):
    """A sample of plain conversations: its own tokens by KINDS, and (kind, place) of each text of the conversation.

    Places are negative: -1 is the last turn, and the system prompt comes before the first.
    """

    own: tuple[int, ...]
    texts: tuple[tuple[int, int], ...]


class SampleSizer:
    """Measures samples. Plain conversations with the same roles are rendered once; the others one by one."""

    def __init__(self, maker: SampleMaker, tokenizer: ChatTokenizer | None) -> None:
        self._maker, self._text = maker, TextSizer(tokenizer)
        self._shapes: dict[tuple[object, ...], list[_SampleShape] | Unrenderable] = {}

    def measure(self, conversations: Sequence[Conversation]) -> Iterator[Sizes]:
        """Yield the sizes of each conversation; ``refused`` is set if the template refuses it."""
        made = [self._made(conversation) for conversation in conversations]
        pieces = [piece for one in made if isinstance(one, list) for sample in one for piece in _pieces(sample)]
        counts = iter(self._text.count([piece.text for piece in pieces if not piece.control]))
        for by_text, one in zip(self._text.measure(conversations), made, strict=True):
            if one is None:
                yield by_text
            elif isinstance(one, Unrenderable):
                yield by_text._replace(samples=[], refused=(one.field, one.message))
            else:
                yield by_text._replace(samples=[self._sized(sample, by_text, counts) for sample in one])

    def _made(self, conversation: Conversation) -> list[_SampleShape] | list[Sample] | Unrenderable | None:
        if len(conversation.turns) > _MOST_TURNS:
            return None
        if not is_plain(conversation) or _is_read(conversation):
            return self._samples(conversation)
        key = (conversation.system if not conversation.system else True, *(turn.role for turn in conversation.turns))
        if key not in self._shapes:
            self._shapes[key] = self._shape(conversation)
        return self._shapes[key]

    def _samples(self, conversation: Conversation) -> list[Sample] | Unrenderable:
        try:
            return self._maker.samples(conversation, Counter())
        except Unrenderable as error:
            return error

    def _shape(self, conversation: Conversation) -> list[_SampleShape] | Unrenderable:
        """Render a conversation with places instead of its texts."""
        first = bool(conversation.system)
        places = [f"\ue000{number}\ue001" for number in range(len(conversation.turns) + first)]
        turns = [turn._replace(text=place) for turn, place in zip(conversation.turns, places[first:], strict=True)]
        system = places[0] if first else conversation.system
        made = self._samples(conversation._replace(system=system, turns=tuple(turns)))
        if isinstance(made, Unrenderable):
            return made
        shapes = []
        for sample in made:
            own = [piece._replace(text=_PLACE.sub("", piece.text)) for piece in sample.pieces]
            counts = iter(self._text.count([piece.text for piece in own if not piece.control]))
            texts = [(KINDS.index(piece.kind), int(at) - len(places))
                     for piece in sample.pieces for at in _PLACE.findall(piece.text)]  # fmt: skip
            shapes.append(_SampleShape(_by_kind(own, counts), tuple(texts)))
        return shapes

    def _sized(self, sample: _SampleShape | Sample, by_text: Sizes, counts: Iterator[int]) -> tuple[int, ...]:
        if isinstance(sample, Sample):
            return _by_kind(sample.pieces, counts)
        kinds = list(sample.own)
        for kind, number in sample.texts:
            kinds[kind] += by_text.turns[number] - self._text.frame
        return tuple(kinds)


def _pieces(sample: _SampleShape | Sample) -> Sequence[Piece]:
    return sample.pieces if isinstance(sample, Sample) else ()


def _by_kind(pieces: Iterable[Piece], counts: Iterator[int]) -> tuple[int, ...]:
    """Return the tokens of each of KINDS; ``counts`` are those of the pieces that are no control tokens."""
    kinds = [0] * len(KINDS)
    for piece in pieces:
        kinds[KINDS.index(piece.kind)] += 1 if piece.control else next(counts)
    return tuple(kinds)


def _is_read(conversation: Conversation) -> bool:
    """Tell whether a template may do more with a text than to write it."""
    return any(mark in turn.text for turn in conversation.turns for mark in _READ_BY_TEMPLATES)
