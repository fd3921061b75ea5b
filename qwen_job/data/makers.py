"""Make the sample maker of a job's data: its chat template, its settings, and the control tokens of its tokenizer."""

from __future__ import annotations

from pathlib import Path

from qwen_job.chat.messages import Controls
from qwen_job.chat.samples import SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate, find_texts, read_template
from qwen_job.chatml import IM_END, IM_START, SYSTEM_PROMPT, chat_template
from qwen_job.data.encode import ChatTokenizer

# What Qwen's templates write around reasoning, calls and results: one token each where the tokenizer has it.
_WORDS = tuple(f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response") for slash in ("", "/"))


def sample_maker(
    template: str, settings: ChatSettings, folder: Path | None, tokenizer: ChatTokenizer | None
) -> SampleMaker:
    """Return the sample maker for ``template`` (auto, chatml or a file) and the model in ``folder``, if there is one.

    Raises:
        ModelError: a template cannot be read.
    """
    words = _WORDS if tokenizer is None else tuple(word for word in _WORDS if word in tokenizer.text_tokens)
    return SampleMaker(_template(template, settings, folder), settings, Controls((IM_START, IM_END), words))


def _template(choice: str, settings: ChatSettings, folder: Path | None) -> ChatTemplate:
    if choice not in ("auto", "chatml"):
        return read_template(Path(choice))
    found = find_texts(folder) if choice == "auto" and folder else None
    if found:
        return ChatTemplate(found.texts, str(folder), tokens=found.tokens)
    system = SYSTEM_PROMPT if settings.system_prompt is None else settings.system_prompt
    return ChatTemplate({"default": chat_template(system)}, "ChatML")
