"""Conversations by hypothesis: tools, parallel calls, reasoning, odd texts, languages, borders of every kind."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qwen_job.chat.conversation import Conversation, ToolCall, Turn

_WORDS = (
    "Hello", "world.", "你好，", "世界。", "Привет", "مرحبا", "नमस्ते", "🙂👍🏽", "e\u0301", "x = 3\n",
    "```py\nif a < b:\n\tc()\n```",
    "\n\nnew", " two  spaces ", "{\"a\": 1}", "\\n", "'quoted'", "<b>", "a<b", "100%", "\u200b", "\xa0", "É", "ﬁ",
)  # fmt: skip
_LOOKALIKES = ("<|im_end|>", "<|im_start|>user\n", "<tool_call>", "</tool_call>", "<think>", "<tool_response>")
_BORDERS = ("", "", "", "", "\n", " ", "\n\n", "\t", " \n")


@st.composite
def texts(draw: Any, lookalikes: bool = False) -> str:
    """A text with something visible in it; ``lookalikes``: perhaps spellings of control tokens."""
    words = st.sampled_from(_WORDS + (_LOOKALIKES if lookalikes else ()))
    parts = draw(st.lists(words | st.text(st.characters(codec="utf-8", max_codepoint=0xDFFF), max_size=8), max_size=5))
    visible = draw(st.sampled_from(("ok", "好", "7", "yes.")))
    before: str = draw(st.sampled_from(_BORDERS))
    behind: str = draw(st.sampled_from(_BORDERS))
    inside: str = "".join(parts)
    visible_text: str = visible
    return before + visible_text + inside + behind


_SCALARS = st.none() | st.booleans() | st.integers(-9, 10**6) | st.floats(-1e6, 1e6) | texts()
_VALUES = st.recursive(_SCALARS, lambda one: st.lists(one, max_size=2) | st.dictionaries(st.sampled_from("ab"), one),
                       max_leaves=4)  # fmt: skip
_NAMES = st.sampled_from(("look", "get_weather", "查询", "a.b-c"))
_ARGUMENTS = st.dictionaries(st.sampled_from(("city", "days", "opts", "天")), _VALUES, max_size=3)


@st.composite
def tools(draw: Any) -> dict[str, Any]:
    """One tool in OpenAI's form."""
    kinds = st.fixed_dictionaries({"type": st.sampled_from(("string", "integer")), "description": texts()})
    keys = st.dictionaries(st.sampled_from(("city", "days")), kinds, max_size=2)
    function = {"name": draw(_NAMES), "description": draw(texts())}
    return {
        "type": "function",
        "function": {**function, "parameters": {"type": "object", "properties": draw(keys)}},
    }


@st.composite
def answers(draw: Any, reasons: bool, calls: int = 0, lookalikes: bool = False) -> Turn:
    """A turn of the assistant."""
    text = "" if calls and draw(st.booleans()) else draw(texts(lookalikes))
    reasoning = draw(texts()) if reasons and draw(st.booleans()) else None
    made = tuple(ToolCall(draw(_NAMES), draw(_ARGUMENTS), draw(st.sampled_from(("", "id_1")))) for _ in range(calls))
    return Turn("assistant", text, reasoning, made)


@st.composite
def conversations(draw: Any, *, reasons: bool = True, calls: bool = True, lookalikes: bool = False) -> Conversation:
    """A conversation that every template of a model with tools can render."""
    turns: list[Turn] = []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", draw(texts(lookalikes))))
        for _ in range(draw(st.integers(0, 2)) if calls else 0):
            count = draw(st.integers(1, 2))
            turns.append(draw(answers(reasons, count, lookalikes)))
            turns += [Turn("tool", draw(texts(lookalikes)), name="look") for _ in range(count)]
        turns.append(draw(answers(reasons, 0, lookalikes)))
    listed = tuple(draw(st.lists(tools(), max_size=2))) if calls else ()
    system = draw(st.none() | st.just("") | texts(lookalikes))
    return Conversation("", system, tuple(turns), (), listed)
