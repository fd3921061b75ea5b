"""The prompt that a server builds for the next turn of a conversation, in pieces to encode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_job.chat.conversation import Conversation
from qwen_job.chat.messages import Controls, Messages, marked_messages, plain_messages
from qwen_job.chat.samples import Piece
from qwen_job.chat.template import ChatTemplate, Unrenderable
from qwen_job.chat.traits import opening_of


class Prompt(NamedTuple):
    """A prompt; no piece of it is learnt.

    Attributes:
        pieces: control tokens and the text between them.
        opened: it ends inside a block of thoughts.
    """

    pieces: tuple[Piece, ...]
    opened: bool

    @property
    def text(self) -> str:
        """The whole text, control tokens written out."""
        return "".join(piece.text for piece in self.pieces)


def prompt_of(conversation: Conversation, template: ChatTemplate, controls: Controls) -> Prompt:
    """Return the prompt for an assistant's turn after all turns of ``conversation``.

    ``conversation.system`` None: the template's default. Text that looks like a control token stays text.

    Raises:
        Unrenderable: the template refuses the conversation.
    """
    plain = _rendered(plain_messages(conversation, conversation.system), template)
    marked = marked_messages(conversation, conversation.system, controls)
    text = _rendered(marked, template)
    if marked.mark and text.replace(marked.mark, "") != plain:
        # Such as a user's <tool_response>, by which Qwen3's template knows the results of tools.
        marked = marked_messages(conversation, conversation.system, controls, words=False)
        text = _rendered(marked, template)
        if marked.mark and text.replace(marked.mark, "") != plain:
            raise Unrenderable("row", f"holds text that looks like a control token, which this template reads ("
                               f"{template.source}); remove it")  # fmt: skip
    opening = opening_of(plain)
    return Prompt(tuple(_cut(text, controls, marked.mark)), "<think>" in opening and "</think>" not in opening)


def _rendered(messages: Messages, template: ChatTemplate) -> str:
    options: Mapping[str, Any] = messages.options
    return template.render(messages.messages, messages.tools, True, **options)


def _cut(text: str, controls: Controls, mark: str) -> list[Piece]:
    pieces, at = list[Piece](), 0
    for found in controls.pattern.finditer(text):
        pieces += _between(text[at : found.start()], mark)
        pieces.append(Piece(found[0], "prompt", False, True))
        at = found.end()
    return pieces + _between(text[at:], mark)


def _between(text: str, mark: str) -> list[Piece]:
    return [Piece(text.replace(mark, "") if mark else text, "prompt", False, False)] if text else []
