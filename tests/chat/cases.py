"""Official chat templates, worked examples rendered by them, and generated conversations.

The templates are those that the models ship. QwQ's and Qwen3-2507-Thinking's are made here from their nearest
relative: they differ from it as their models' do, but not byte for byte from anything.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

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
