"""Sample makers for the template that a job chooses, ChatML among them. Imports no numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from qwen_job.chat.chosen import Chosen
from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import Controls
from qwen_job.chat.samples import Kind, Piece, Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate
from qwen_job.chatml import IM_END, IM_START, chat_template
from qwen_job.data.encode import ChatTokenizer, texts_of
from qwen_job.errors import DataError
from qwen_job.facts import choices

CHATML_SOURCE = "ChatML"
# What Qwen's templates write around reasoning, calls and results: one token each in the newer tokenizers.
WORDS = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response") for slash in ("", "/"))


class ChatmlMaker(SampleMaker):
    """Makes samples in ChatML, turn after turn, so that a conversation may have any number of them.

    ``mask``: that of the job's data; reference also trains what :func:`~qwen_job.data.encode.signed_ids` says.
    """

    def __init__(
        self,
        template: ChatTemplate,
        settings: ChatSettings,
        controls: Controls,
        mask: choices.Mask,
        another: str = "",
    ) -> None:
        super().__init__(template, settings, controls, another)
        self._mask = mask

    def samples(self, conversation: Conversation, counts: Counter[str]) -> list[Sample]:
        """Return the one sample of a conversation, none if no turn is learnt; see :meth:`SampleMaker.samples`."""
        settled = self.settler.settled(conversation, counts)._replace(system=conversation.system)
        learnt = tuple(number for number, turn in enumerate(settled.turns) if turn.learn)
        if not learnt:
            counts["nothing_learnt"] += 1
            return []
        texts = texts_of(settled, self.settings.system_prompt or "")
        first, framed = len(texts) - len(settled.turns), self._mask == "reference"
        pieces: list[Piece] = []
        for number, (role, text) in enumerate(texts, -first):
            learns = number >= 0 and bool(settled.turns[number].learn)
            kind: Kind = "answer" if learns else "prompt"
            pieces += [Piece(IM_START, "prompt", framed, True), Piece(f"{role}\n", "prompt", False, False)]
            pieces += [Piece(text, kind, learns, False), Piece(IM_END, kind, learns or framed, True)]
            pieces.append(Piece("\n", "prompt", framed, False))
        return [Sample(tuple(pieces), learnt)]


def sample_maker(
    chosen: Chosen,
    settings: ChatSettings,
    tokenizer: ChatTokenizer | None = None,
    words: Collection[str] = WORDS,
    *,
    source: str = CHATML_SOURCE,
    mask: choices.Mask = "assistant",
    another: str = "",
) -> SampleMaker:
    """Return what makes samples with the chosen template.

    Args:
        chosen: see :func:`qwen_job.chat.chosen.choose`.
        settings: those of the job.
        tokenizer: that of the model; its control tokens are kept out of text.
        words: words of the template that are one token each.
        source: how messages name ChatML.
        mask: data.mask; reference needs ChatML.
        another: what messages advise in place of ChatML; empty: the fields of job.yaml.

    Raises:
        DataError: the mask does not fit the template.
    """
    refuse_mask(chosen, mask)
    frame = tokenizer.control_tokens if tokenizer else (IM_START, IM_END)
    controls = Controls(frame, tuple(sorted(words)))
    if chosen.template:
        return SampleMaker(chosen.template, settings, controls)
    system = chosen.system_prompt if settings.system_prompt is None else settings.system_prompt
    template = ChatTemplate({"default": chat_template(system)}, source)
    return ChatmlMaker(template, settings._replace(system_prompt=system), controls, mask, another)


def refuse_mask(chosen: Chosen, mask: choices.Mask) -> None:
    """Refuse to train the frame of a template other than ChatML.

    Raises:
        DataError: the mask is reference, and the template is not ChatML.
    """
    if chosen.template and mask == "reference":
        raise DataError("data.mask: reference trains the frame of ChatML, and the model has its own template; write "
                        "data.template: chatml, or assistant")  # fmt: skip
