"""What the conversations of some files hold beside plain turns: reasoning, tools, system prompts, switches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qwen_job.chat.conversation import Conversation, Turn

MOST = 1000  # different system prompts, sets of tools, names and options counted separately
_SHOWN = 8


@dataclass
class Contents:
    """Counts over conversations. ``switched``: answers by the data's own switch of what is trained.

    ``systems`` and ``tool_sets`` are hashes, ``called`` the names of called tools, ``options`` the rows' own arguments
    for the chat template as ``name=value``; each holds at most MOST different ones.
    """

    conversations: int = 0
    answers: int = 0
    reasoned: int = 0
    reasoned_answers: int = 0
    without_system: int = 0
    with_tools: int = 0
    calls: int = 0
    results: int = 0
    switched: Counter[bool] = field(default_factory=Counter)
    called: Counter[str] = field(default_factory=Counter)
    options: Counter[str] = field(default_factory=Counter)
    systems: set[int] = field(default_factory=set)
    tool_sets: set[int] = field(default_factory=set)

    def add(self, conversation: Conversation) -> None:
        """Count one conversation."""
        self.conversations += 1
        before = self.reasoned_answers
        for turn in conversation.turns:
            if turn.role == "assistant":
                self._add_answer(turn)
            elif turn.role == "tool":
                self.results += 1
        self.reasoned += self.reasoned_answers > before
        if conversation.system:
            _note(self.systems, hash(conversation.system))
        else:
            self.without_system += 1
        if conversation.tools:
            self.with_tools += 1
            _note(self.tool_sets, hash(json.dumps(conversation.tools, sort_keys=True)))
        for name, value in conversation.options.items():
            _count(self.options, f"{name}={json.dumps(value, ensure_ascii=False)[:40]}")

    def _add_answer(self, turn: Turn) -> None:
        self.answers += 1
        if turn.reasoning:
            self.reasoned_answers += 1
        if turn.learn is not None:
            self.switched[turn.learn] += 1
        for call in turn.calls:
            self.calls += 1
            _count(self.called, call.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {
            "answers": self.answers,
            "conversations_with_reasoning": self.reasoned,
            "answers_with_reasoning": self.reasoned_answers,
            "conversations_with_tools": self.with_tools,
            "tool_sets": len(self.tool_sets),
            "calls": self.calls,
            "results": self.results,
            "called": dict(self.called.most_common()),
            "answers_switched_on": self.switched[True],
            "answers_switched_off": self.switched[False],
            "system_prompts": len(self.systems),
            "conversations_without_system": self.without_system,
            "template_options": dict(self.options.most_common()),
        }

    def lines(self) -> Iterator[str]:
        """Yield a line for each thing that some conversations hold and plain ones do not."""
        rows, answers = self.conversations, self.answers
        if self.reasoned:
            rest = "" if self.reasoned_answers == answers else "; data.empty_think says how the others are trained"
            in_answers = _of(self.reasoned_answers, answers)
            yield f"reasoning: {_of(self.reasoned, rows)} conversations, {in_answers} answers{rest}"
        if self.with_tools or self.calls or self.results:
            sets = _different(self.tool_sets, "set of tools", "sets of tools")
            calls = f"{self.calls:,} calls, {self.results:,} results"
            yield f"tools: {_of(self.with_tools, rows)} conversations, {sets}, {calls}"
        if self.called:
            yield f"calls by tool: {_listed(self.called)}"
        if self.switched:
            on, off = self.switched[True], self.switched[False]
            yield f"switches of the data: {off:,} of {answers:,} answers are not trained, {on:,} are marked as trained"
        if self.options:
            yield f"template options of rows: {_listed(self.options)}"
        if len(self.systems) > 1 or (self.systems and self.without_system):
            different = _different(self.systems, "system prompt", "different system prompts")
            yield f"{different}; {_of(self.without_system, rows)} conversations without one"


def _note(seen: set[int], digest: int) -> None:
    if len(seen) < MOST:
        seen.add(digest)


def _count(counter: Counter[str], name: str) -> None:
    if name in counter or len(counter) < MOST:
        counter[name] += 1


def _of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / total:.1%})"


def _different(found: set[int], one: str, many: str) -> str:
    return f"{MOST:,} or more {many}" if len(found) >= MOST else f"{len(found):,} {one if len(found) == 1 else many}"


def _listed(counter: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counter.most_common(_SHOWN))
    return shown + (f" and {len(counter) - _SHOWN:,} more" if len(counter) > _SHOWN else "")
