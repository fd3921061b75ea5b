"""How many tokens conversations have, by turn and by kind: counted with a tokenizer, or estimated from the text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from qwen_job.chat.conversation import Conversation, Turn
from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.data.encode import ChatTokenizer

KINDS = ("prompt", "reasoning", "call", "answer")
_PROMPT, _REASONING, _CALL, _ANSWER = range(4)
# Tokens around a part in Qwen's templates: a turn, a thought, a call, and the text that introduces tools.
_FRAME, _AROUND_REASONING, _AROUND_CALL, _AROUND_TOOLS = 5, 4, 6, 90
_WIDE = re.compile("[\u2e80-\U0010ffff]+")


class Sizes(NamedTuple):
    """Tokens of a conversation: of each turn, the system prompt first if there is one; of each sample, by KINDS.

    ``refused``: the field and the message with which the chat template refuses it.
    """

    turns: list[int]
    samples: list[tuple[int, ...]]
    refused: tuple[str, str] | None = None


class _Part(NamedTuple):
    turn: int
    kind: int
    text: str
    around: int = 0


class TextSizer:
    """Measures the text of conversations within ChatML's frame; estimates its tokens if there is no tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer | None = None) -> None:
        self._tokenizer = tokenizer
        self.frame = len(tokenizer.frame("user")) + len(tokenizer.tail) if tokenizer else _FRAME

    def measure(self, conversations: Sequence[Conversation]) -> Iterator[Sizes]:
        """Yield the sizes of each conversation; all of it is one sample."""
        parts = [list(_parts(conversation)) for conversation in conversations]
        counts = iter(self.count([part[2] for sample in parts for part in sample]))
        for sample in parts:
            yield self._sized(sample, counts)

    def count(self, texts: list[str]) -> Iterable[int]:
        """Return the tokens of each text."""
        if self._tokenizer is None:
            return map(estimate, texts)
        counts: list[int] = self._tokenizer.encode_flat(list(map(_writable, texts))).lengths.tolist()
        return counts

    def _sized(self, parts: list[_Part], counts: Iterator[int]) -> Sizes:
        turns = [self.frame] * (parts[-1][0] + 1)
        kinds = [self.frame * len(turns), 0, 0, 0]
        for (turn, kind, _, around), count in zip(parts, counts, strict=False):
            turns[turn] += count + around
            kinds[kind] += count + around
            if kind == _ANSWER:  # the end of a turn is learnt
                kinds[_ANSWER] += 1
                kinds[_PROMPT] -= 1
        return Sizes(turns, [tuple(kinds)])


def estimate(text: str) -> int:
    """Estimate tokens without a tokenizer: 1.5 Chinese characters or 4 others each."""
    wide = 0 if text.isascii() else sum(map(len, _WIDE.findall(text)))
    return round(wide / 1.5 + (len(text) - wide) / 4)


def _parts(conversation: Conversation) -> Iterator[_Part]:
    first = 0
    system = SYSTEM_PROMPT if conversation.system is None else conversation.system
    if system or conversation.tools:
        first = 1
        yield _Part(0, _PROMPT, system)
        if conversation.tools:
            yield _Part(0, _PROMPT, _json(conversation.tools), _AROUND_TOOLS)
    for number, turn in enumerate(conversation.turns, first):
        if turn.reasoning or turn.calls:
            yield from _beside_text(number, turn)
        yield _Part(number, _ANSWER if turn.role == "assistant" else _PROMPT, turn.text)


def _beside_text(number: int, turn: Turn) -> Iterator[_Part]:
    if turn.reasoning:
        yield _Part(number, _REASONING, turn.reasoning, _AROUND_REASONING)
    for call in turn.calls:
        yield _Part(number, _CALL, _json({"name": call.name, "arguments": call.arguments}), _AROUND_CALL)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _writable(text: str) -> str:
    """Return the text with halves of surrogate pairs replaced, which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
