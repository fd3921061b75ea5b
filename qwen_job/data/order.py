"""Tell why the turns of a conversation cannot be trained on: their order, calls and results, and what they lack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from qwen_job.chat.conversation import Conversation, Turn, json_text
from qwen_job.data.keys import RecordError

# C0 and C1 but tab and line ends; zero-width and bidirectional controls; BOM; the replacement character.
_CONTROL = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffd"
CONTROL = re.compile(f"[{_CONTROL}]")
# Those, white space, and what only joins or shapes the characters around it.
_INVISIBLE = re.compile(rf"[\s{_CONTROL}\u00ad\u200c\u200d\u2061-\u2064\ufe00-\ufe0f]*")
# ToolACE's calls: [Name Of A Tool(key="value"), other(key=1)].
_CALL_AS_CODE = re.compile(r"\s*\[[^\[\]()]+\(.*\)\]\s*", re.DOTALL)
_FIX = "; data.turn_order: reference or join (--turn-order) accepts such conversations"


def order_problems(conversation: Conversation, turn_order: str = "strict") -> Iterator[RecordError]:
    """Yield why a conversation cannot be trained on: order of roles, empty turns, no answer.

    Unless ``turn_order`` is strict, user and assistant need not alternate. A system turn may be anywhere: the chat
    template decides whether it can be rendered.
    """
    turns = conversation.turns
    roles = [turn.role for turn in turns]
    alternate = roles[::2].count("user") + roles[1::2].count("assistant") == len(roles)
    misplaced = None if alternate or turn_order != "strict" else misplaced_turn(turns)
    for number, turn in enumerate(turns):
        if misplaced and number == misplaced[0]:
            yield RecordError(f"turn {number + 1} ({turn.role})", misplaced[1] + _FIX, "order")
            break
        if not turn[1][:1].isalnum() and is_invisible(turn.text) and _lacks_text(turn):
            what = "holds only invisible characters" if turn.text.strip() else "is empty"
            message = f"{what}; give it text or remove the conversation"
            yield RecordError(f"turn {number + 1} ({turn.role})", message, "order")
    if "assistant" not in roles:
        message = f"hold no assistant answer to learn from; add one or remove the conversation{_FIX}"
        yield RecordError("turns", message, "order")
    texts = _texts(conversation)
    if has_lone_surrogate("".join(texts)):
        yield from _surrogates(texts, len(turns))


def _lacks_text(turn: Turn) -> bool:
    return not (turn.calls or turn.reasoning or turn.role == "tool")


def misplaced_turn(turns: Sequence[Turn]) -> tuple[int, str] | None:
    """Return the index of the first turn that is out of order and what is wrong with it, None if all are in order.

    The user's turn is first; the assistant's follows it, or the results of tools; results follow calls. A system turn
    is in order anywhere.
    """
    expected, called = "user", False
    for number, turn in enumerate(turns):
        role = turn.role
        if role == expected:
            expected, called = "assistant" if role == "user" else "user", bool(turn.calls)
        elif role == "tool":
            if not called:
                before = turns[number - 1] if number else None
                written = before is not None and before.role == "assistant" and _CALL_AS_CODE.fullmatch(before.text)
                form = ", where the text has it as code, [name(key=value)], the form of ToolACE" if written else ""
                return number, ("is a result without a call before it; write tool_calls in the assistant's turn before"
                                f"{form}")  # fmt: skip
            expected = "assistant"
        elif role != "system":
            return number, _misplacement(turns, number, expected)
    return None


def _misplacement(turns: Sequence[Turn], number: int, expected: str) -> str:
    before = turns[number - 1] if number else None
    if before and before.calls:
        return "follows a call without a result; add a turn with the role tool, or remove the call"
    if before and before.role == "tool":
        return (
            "follows a result; the assistant's answer to it is missing: add it, or end the conversation before the call"
        )
    return f"should be the {expected}'s; user and assistant must alternate, user first"


def is_invisible(text: str) -> bool:
    """Tell whether a text is empty or has only invisible characters."""
    return _INVISIBLE.fullmatch(text) is not None


def _texts(conversation: Conversation) -> list[str]:
    """Return the system prompt, everything in each turn, and tools and options if there are any."""
    texts = [conversation.system or ""]
    for turn in conversation.turns:
        # Most turns have nothing besides their text.
        _, text, reasoning, calls, _, name, call_id = turn
        texts.append(_everything_in(turn) if reasoning or calls or name or call_id else text)
    if conversation.tools or conversation.options:
        texts.append("".join([json_text(each) for each in (*conversation.tools, conversation.options) if each]))
    return texts


def _surrogates(texts: list[str], turns: int) -> Iterator[RecordError]:
    for number, text in enumerate(texts):
        if has_lone_surrogate(text):
            where = "system" if not number else "tools" if number > turns else f"turn {number}"
            message = r"holds half of a surrogate pair (\ud800-\udfff); re-export the text as UTF-8"
            yield RecordError(where, message, "encoding")


def _everything_in(turn: Turn) -> str:
    calls = [part for call in turn.calls for part in (call.name, call.id, json_text(call.arguments))]
    return "".join([turn.text, turn.reasoning or "", turn.name, turn.call_id, *calls])


def has_lone_surrogate(text: str) -> bool:
    """Tell whether a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
