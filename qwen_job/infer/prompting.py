"""A model's prompts: from a conversation to token IDs, with the chat template in the model's folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.chat.chosen import AUTO, Chosen, choose
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import Controls
from qwen_job.chat.prompt import prompt_of
from qwen_job.chat.samples import Piece, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import Unrenderable
from qwen_job.chat.traits import traits_of
from qwen_job.chatml import IM_END
from qwen_job.data.encode import ChatTokenizer, encode_prompt
from qwen_job.data.writers import template_words
from qwen_job.errors import UsageError


class PromptIds(NamedTuple):
    """Token IDs to continue; ``opened``: they end inside a block of thoughts."""

    ids: list[int]
    opened: bool


class Question(NamedTuple):
    """Token IDs to continue, and the text with which the data continues them."""

    ids: list[int]
    reference: str


class Prompter:
    """Builds prompts as a server does.

    Attributes:
        chosen: the template.
        thinks: whether answers may hold reasoning.
    """

    def __init__(self, chosen: Chosen, tokenizer: ChatTokenizer) -> None:
        self.chosen, self.tokenizer = chosen, tokenizer
        self._traits = traits_of(chosen.template) if chosen.template else None
        self.thinks = self._traits is not None and self._traits.thinks

    @classmethod
    def load(cls, folder: Path, chosen: Chosen | None = None) -> Prompter:
        """Read the tokenizer of a model folder, and its template unless another is ``chosen``.

        Raises:
            ModelError: a file cannot be read.
        """
        chosen = chosen or choose(AUTO, folder)
        words = template_words(chosen.template, folder) if chosen.template else frozenset[str]()
        return Prompter(chosen, ChatTokenizer.load(folder, words))

    def check(self, tools: Sequence[Any], thinking: bool | None) -> None:
        """Refuse what the template has no place for.

        Raises:
            UsageError: naming the option.
        """
        where = f"the chat template ({self.chosen.words})"
        if tools and not (self._traits and self._traits.knows_tools):
            raise UsageError(f"--tools: {where} knows no tools; leave the option out, or train a model that does "
                             "with data.template: auto")  # fmt: skip
        if thinking is None or (self._traits and self._traits.has_switch):
            return
        if thinking and not self.thinks:
            raise UsageError(f"--thinking on: {where} has no place for reasoning; leave the option out")
        if not thinking and self.thinks:
            raise UsageError(f"--thinking off: {where} always asks for reasoning; leave the option out")

    def prompt(self, conversation: Conversation) -> PromptIds:
        """Return the prompt for the assistant's turn after ``conversation``.

        ``conversation.system`` None: the template's default.

        Raises:
            UsageError: the template refuses the conversation.
        """
        template, default = self.chosen
        if template is None or self._traits is None:
            return PromptIds(self._in_chatml(conversation, default), False)
        # As in training, an empty one is an empty turn only where the template would else add its default.
        system = conversation.system if conversation.system or self._traits.adds_system else None
        try:
            found = prompt_of(conversation._replace(system=system), template, self._controls())
        except Unrenderable as error:
            raise UsageError(str(error)) from error
        return PromptIds(self.encoded(found.pieces)[0], found.opened)

    def question(self, conversation: Conversation, settings: ChatSettings) -> Question:
        """Return the prompt for the last turn of ``conversation`` as training builds it, and that turn's text.

        Raises:
            Unrenderable: the template refuses the conversation.
        """
        *before, last = (turn._replace(learn=False) for turn in conversation.turns)
        if self.chosen.template is None:
            system = self.chosen.system_prompt if settings.system_prompt is None else settings.system_prompt
            return Question(self._in_chatml(conversation._replace(turns=tuple(before)), system), last.text)
        maker = SampleMaker(self.chosen.template, settings, self._controls())
        turns = (*before, last._replace(learn=True))
        (sample,) = maker.samples(conversation._replace(turns=turns), Counter())
        first = next(at for at, piece in enumerate(sample.pieces) if piece.learnt)
        reference = "".join(piece.text for piece in sample.pieces[first:] if piece.learnt)
        return Question(self.encoded(sample.pieces[:first])[0], reference.removesuffix(IM_END))

    def encoded(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        """Return the token IDs of pieces, and which of them are learnt."""
        ids, learnt = list[int](), list[bool]()
        for piece in pieces:
            new = [self.tokenizer.id_of(piece.text)] if piece.control else self.tokenizer.encode(piece.text)
            ids += new
            learnt += [piece.learnt] * len(new)
        return ids, learnt

    def _controls(self) -> Controls:
        return Controls(self.tokenizer.control_tokens, tuple(sorted(self.tokenizer.words)))

    def _in_chatml(self, conversation: Conversation, default: str) -> list[int]:
        system = default if conversation.system is None else conversation.system
        turns = [(turn.role, turn.text) for turn in conversation.turns]
        return encode_prompt(turns, self.tokenizer, system_prompt=system)
