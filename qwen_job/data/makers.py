"""Make the sample maker of a job's data: its chat template, its settings, and the control tokens of its tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qwen_job.chat.chosen import AUTO, CHATML, choose
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import Controls
from qwen_job.chat.samples import Kind, Piece, Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate
from qwen_job.chatml import IM_END, IM_START, SYSTEM_PROMPT, chat_template
from qwen_job.data.encode import ChatTokenizer, texts_of
from qwen_job.facts import choices

# What Qwen's templates write around reasoning, calls and results: one token each where the tokenizer has it.
_WORDS = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response") for slash in ("", "/"))

_CHATML, _NO_MODEL = "ChatML", "ChatML, as no model is given"


class ChatmlMaker(SampleMaker):
    """Makes samples in ChatML, turn after turn, so that a conversation may have any number of them.

    ``mask``: that of the job's data; reference also trains what :func:`~qwen_job.data.encode.signed_ids` says.
    """

    mask: choices.Mask = "assistant"

    def samples(self, conversation: Conversation, counts: Counter[str]) -> list[Sample]:
        """Return the one sample of a conversation, none if no turn is learnt; see :meth:`SampleMaker.samples`."""
        settled = self.settler.settled(conversation, counts)._replace(system=conversation.system)
        learnt = tuple(number for number, turn in enumerate(settled.turns) if turn.learn)
        if not learnt:
            counts["nothing_learnt"] += 1
            return []
        system = SYSTEM_PROMPT if self.settings.system_prompt is None else self.settings.system_prompt
        texts = texts_of(settled, system)
        first, framed = len(texts) - len(settled.turns), self.mask == "reference"
        pieces: list[Piece] = []
        for number, (role, text) in enumerate(texts, -first):
            learns = number >= 0 and bool(settled.turns[number].learn)
            kind: Kind = "answer" if learns else "prompt"
            pieces += [Piece(IM_START, "prompt", framed, True), Piece(f"{role}\n", "prompt", False, False)]
            pieces += [Piece(text, kind, learns, False), Piece(IM_END, kind, learns or framed, True)]
            pieces.append(Piece("\n", "prompt", framed, False))
        return [Sample(tuple(pieces), learnt)]


def sample_maker(
    template: str,
    settings: ChatSettings,
    folder: Path | None,
    tokenizer: ChatTokenizer | None,
    mask: choices.Mask = "assistant",
) -> SampleMaker:
    """Return the sample maker for ``template`` (auto, chatml or a file) and the model in ``folder``, if there is one.

    ``mask`` has an effect on ChatML only.

    Raises:
        ModelError: a template cannot be read.
    """
    words = _WORDS if tokenizer is None else tuple(word for word in _WORDS if word in tokenizer.text_tokens)
    chosen = _template(template, settings, folder)
    controls = Controls((IM_START, IM_END), words)
    if chosen.source not in (_CHATML, _NO_MODEL):
        return SampleMaker(chosen, settings, controls)
    maker = ChatmlMaker(chosen, settings, controls)
    maker.mask = mask
    return maker


def _template(choice: str, settings: ChatSettings, folder: Path | None) -> ChatTemplate:
    chosen = choose(CHATML if choice == AUTO and folder is None else choice, folder or Path())
    system = chosen.system_prompt if settings.system_prompt is None else settings.system_prompt
    name = _CHATML if folder or choice != AUTO else _NO_MODEL
    return chosen.template or ChatTemplate({"default": chat_template(system)}, name)
