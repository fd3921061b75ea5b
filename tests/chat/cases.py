"""Official chat templates, worked examples rendered by them, and generated conversations.

The templates are those that the models ship. QwQ's and Qwen3-2507-Thinking's are made here from their nearest
relative: they differ from it as their models' do, but not byte for byte from anything.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from qwen_job.chat.conversation import Conversation, ToolCall, Turn
from qwen_job.chat.messages import Controls
from qwen_job.chat.samples import Sample, SampleMaker
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import ChatTemplate

HERE = Path(__file__).parent
EXAMPLES = sorted(path.stem for path in (HERE / "examples").glob("*.json"))
_OPENED = "{{- '<|im_start|>assistant\\n<think>\\n' }}\n"
# Changes that make another model's template of a shipped one: (of which, what, with what).
_MADE = {
    "qwen3_2507_thinking": (
        "qwen3",
        "    {{- '<|im_start|>assistant\\n' }}\n    {%- if enable_thinking is defined and enable_thinking is false %}\n"
        "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n",
        _OPENED,
    ),
    "qwq": (
        "qwen3_instruct_2507",
        '    {%- elif message.role == "assistant" %}\n',
        '    {%- elif message.role == "assistant" %}\n'
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n",
    ),
}
SHIPPED = sorted(path.stem for path in (HERE / "templates").glob("*.jinja"))
ALL = [*SHIPPED, *_MADE]


@cache
def text_of(name: str) -> str:
    """Return the text of a template."""
    if name not in _MADE:
        return (HERE / "templates" / f"{name}.jinja").read_text("utf-8")
    base, old, new = _MADE[name]
    text = text_of(base)
    assert old in text
    text = text.replace(old, new)
    if name == "qwq":
        old = "    {{- '<|im_start|>assistant\\n' }}\n"
        assert old in text
        text = text.replace(old, _OPENED)
    return text


@cache
def template(name: str) -> ChatTemplate:
    """Return a template, loaded."""
    return ChatTemplate({"default": text_of(name)}, name)


def example(name: str) -> dict[str, Any]:
    """Return a worked example: messages, tools, kwargs, and what the template makes of them."""
    loaded: dict[str, Any] = json.loads((HERE / "examples" / f"{name}.json").read_text("utf-8"))
    return loaded


CONTROLS = Controls(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)


def maker(name: str, **settings: Any) -> SampleMaker:
    """Return a maker of samples with a template."""
    return SampleMaker(template(name), ChatSettings(**settings), CONTROLS)


def conversation_of(case: dict[str, Any]) -> Conversation:
    """Return a worked example as a conversation."""
    messages = case["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    turns = tuple(map(_turn, messages[1 if system is not None else 0 :]))
    return Conversation("", system, turns, (), tuple(case["tools"] or ()), case["template_kwargs"])


def _turn(message: dict[str, Any]) -> Turn:
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = tuple(ToolCall(function["name"], function["arguments"]) for function in functions)
    return Turn(message["role"], message["content"], message.get("reasoning_content"), calls)


def talk(*texts: str | Turn, system: str | None = None, **more: Any) -> Conversation:
    """Return a conversation; texts are of user and assistant in turns."""
    turns = [
        text if isinstance(text, Turn) else Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(texts)
    ]
    return Conversation("", system, tuple(turns), **more)


def answer(text: str, reasoning: str | None = None, *calls: ToolCall, learn: bool | None = None) -> Turn:
    """Return a turn of the assistant."""
    return Turn("assistant", text, reasoning, calls, learn)


def learnt(samples: list[Sample]) -> list[str]:
    """Return what is learnt of each sample, its stretches joined by a bar."""
    return ["|".join(_stretches(sample)) for sample in samples]


def _stretches(sample: Sample) -> list[str]:
    groups = groupby(sample.pieces, lambda piece: piece.learnt)
    return ["".join(piece.text for piece in group) for is_learnt, group in groups if is_learnt]
