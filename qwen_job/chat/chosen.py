"""Which template a job's conversations are written with: the model's own, ChatML, or a file."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import NamedTuple

from qwen_job.chat.template import ChatTemplate, find_texts, read_template
from qwen_job.chatml import SYSTEM_PROMPT, chat_template
from qwen_job.facts import choices

AUTO, CHATML = choices.NAMED_TEMPLATES
_OPENING = re.compile(r"'<\|im_start\|>system\\n' \+ (\"(?:[^\"\\]|\\.)*\") \+")


class Chosen(NamedTuple):
    """A template; None: ChatML, with ``system_prompt`` for conversations without one."""

    template: ChatTemplate | None
    system_prompt: str = SYSTEM_PROMPT

    @property
    def words(self) -> str:
        """Name it for messages."""
        return repr(self.template) if self.template else "ChatML"


def choose(setting: str, folder: Path, date: datetime.date | None = None) -> Chosen:
    """Return the template for ``data.template``: auto, chatml or a file; ``folder`` is the model's.

    ``auto`` is the model's own, and ChatML for a model without one (Qwen-1), or with ours for ChatML. ``date`` is what
    the template takes for today.

    Raises:
        ModelError: a file cannot be read or is none of those.
    """
    if setting == CHATML:
        return Chosen(None)
    if setting != AUTO:
        return Chosen(read_template(Path(setting), date))
    found = find_texts(folder)
    if found is None:
        return Chosen(None)
    own = _prompt_of_chatml(found.texts.get("default", ""))
    if own is not None:
        return Chosen(None, own)
    return Chosen(ChatTemplate(found.texts, str(folder), tokens=found.tokens, date=date))


def _prompt_of_chatml(text: str) -> str | None:
    """Return the system prompt of a template that we wrote for ChatML; None for any other template."""
    found = _OPENING.search(text)
    prompt = json.loads(found[1]) if found else ""
    return prompt if text == chat_template(prompt) else None
