"""What a chat template can do, found by rendering probes: a template is a program, its text says little."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple

import jinja2
from jinja2 import meta

from qwen_job.chat.template import ChatTemplate, Unrenderable
from qwen_job.chatml import IM_END
from qwen_job.errors import ModelError
from qwen_job.facts.thinking import Thinking

# What may follow the header of a generation prompt: an open or an empty block of thoughts.
OPENING = re.compile(r"(?:<think>\s*(?:</think>\s*)?)?\Z")
_SYSTEM = {"role": "system", "content": "probe-of-a-system-turn"}
_USER = {"role": "user", "content": "probe-of-a-question"}
_ANSWER = {"role": "assistant", "content": "probe-of-an-answer"}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_of_a_tool",
        "description": "d",
        "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "d"}}},
    },
}
_CALL = {"type": "function", "function": {"name": "probe_of_a_call", "arguments": {"key": "v"}}}
_RESULT = {"role": "tool", "content": "probe-of-a-result", "name": "probe_of_a_call"}


class Traits(NamedTuple):
    """What a template does.

    Attributes:
        knows_tools: it lists tools, writes calls and shows results.
        keeps_reasoning: the reasoning of a last turn is in its rendering.
        opening: what a generation prompt with thinking on has after its header: nothing or an open block.
        has_switch: ``enable_thinking`` changes the generation prompt.
        adds_system: a chat without a system turn gets one.
        variables: the names that it looks up; other options have no effect.
        off_unasked: without ``enable_thinking``, the generation prompt is that of thinking off.
        calls_in_xml: it writes a call as ``<function=...>``, not as JSON.
        tools_fault: why a chat with tools fails, and where; empty if it does not.
    """

    knows_tools: bool
    keeps_reasoning: bool
    opening: str
    has_switch: bool
    adds_system: bool
    variables: frozenset[str]
    off_unasked: bool = False
    calls_in_xml: bool = False
    tools_fault: str = ""

    @property
    def thinks(self) -> bool:
        """Whether turns of this template have a place for reasoning."""
        return self.keeps_reasoning or bool(self.opening) or self.has_switch

    @property
    def thinking(self) -> Thinking:
        """Whether and when the template asks for reasoning."""
        return "none" if not self.thinks else "switch" if self.has_switch else "always"


def traits_of(template: ChatTemplate) -> Traits:
    """Probe a template.

    Raises:
        ModelError: it renders no chat at all, or does not write turns as ChatML does: the fault is in its file.
    """
    _refuse_faulty(template)
    thinking = {"role": "assistant", "content": "a", "reasoning_content": "probe-of-a-thought"}
    ways: tuple[dict[str, Any], ...] = ({"enable_thinking": True}, {"enable_thinking": False}, {})
    on, off, unasked = (_rendered(template, [_USER], True, **way) for way in ways)
    tools, tools_fault = _with_tools(template)
    bare = _rendered(template, [_USER])
    return Traits(
        knows_tools=all(name in tools for name in ("probe_of_a_tool", "probe_of_a_call", "probe-of-a-result")),
        keeps_reasoning="probe-of-a-thought" in _rendered(template, [_USER, thinking]),
        opening=opening_of(on),
        has_switch=opening_of(on) != opening_of(off),
        off_unasked=opening_of(unasked) == opening_of(off) != opening_of(on),
        calls_in_xml="<function=probe_of_a_call>" in tools,
        tools_fault=tools_fault,
        adds_system="system" in bare.partition(_USER["content"])[0],
        variables=frozenset().union(*map(_variables, template.texts.values())),
    )


def opening_of(prompt: str) -> str:
    """Return the block of thoughts, open or empty, with which a generation prompt ends; empty if there is none."""
    found = OPENING.search(prompt)
    return found.group(0) if found else ""


def _refuse_faulty(template: ChatTemplate) -> None:
    """Refuse a template for which no data could be right, before each row is blamed for it."""
    try:
        asked, bare = (_of_either(template, [_USER], None, asks) for asks in (True, False))
        answered = _of_either(template, [_USER, _ANSWER], None, False)
        if len(template.texts) > 1:
            _of_either(template, [_USER], [_TOOL], True)
    except Unrenderable as error:
        raise ModelError(f"{template.fault(error)}; so it renders no chat at all: correct it, or write another "
                         "file or chatml for data.template") from error  # fmt: skip
    if IM_END not in answered.partition(_ANSWER["content"])[2]:
        raise ModelError(f"{template.source}: the chat template does not end turns with {IM_END}; write chatml, or a "
                         "file that does, for data.template")  # fmt: skip
    if asked == bare:
        raise ModelError(f"{template.source}: the chat template has no prompt for an answer; write one for "
                         "add_generation_prompt")  # fmt: skip


def _of_either(template: ChatTemplate, chat: list[dict[str, Any]], tools: list[Any] | None, asks: bool) -> str:
    """Render a chat; where that fails, with a system turn, which a template may insist on."""
    try:
        return template.render(chat, tools, asks)
    except Unrenderable as error:
        first = error
    with suppress(Unrenderable):
        return template.render([_SYSTEM, *chat], tools, asks)
    raise first


def _with_tools(template: ChatTemplate) -> tuple[str, str]:
    """Return a chat with tools, and why it cannot be rendered."""
    calling = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    try:
        return _of_either(template, [_USER, calling, _RESULT], [_TOOL], False), ""
    except Unrenderable as error:
        return "", template.fault(error)


def _rendered(template: ChatTemplate, messages: list[dict[str, Any]], asks: bool = False, **more: Any) -> str:
    tools = more.pop("tools", None)
    try:
        return template.render(messages, tools, asks, **more)
    except Unrenderable:
        return ""  # it can do what was probed not at all


def _variables(text: str) -> frozenset[str]:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "qwen_job.chat.sandbox.GenerationTag"])
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(text)))
    except jinja2.TemplateError:
        return frozenset()
