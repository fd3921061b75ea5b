"""What the settings of a job make of a conversation before it is rendered: reasoning, system prompt, what is learnt."""

from __future__ import annotations

import re
from collections import Counter

from qwen_job.chat.conversation import Conversation, Turn, is_plain
from qwen_job.chat.settings import ChatSettings
from qwen_job.chat.template import RESERVED, Unrenderable
from qwen_job.chat.traits import Traits

SWITCH = "enable_thinking"
# Prefix of the counters of rows by an option that the template does not read.
UNKNOWN_OPTION = "unknown_option/"
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
_new = tuple.__new__
_INLINE = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)


class Settler:
    """Applies the settings for a template with these traits.

    In messages, ``source`` names the template, and ``another`` says how to choose one; empty: the fields of job.yaml.
    """

    def __init__(self, settings: ChatSettings, traits: Traits, source: str, another: str = "") -> None:
        self.settings, self.traits, self._source, self._another = settings, traits, source, another
        self._parses = settings.thinking == "as_written" and traits.thinks

    @property
    def reads(self) -> str:
        """How rows are read, as ``thinking`` of ``qwen_job.data.formats.parse_record``: where the template has no place
        for reasoning and it is not stripped, ``<think>`` in a text stays text, as it is in the data.
        """
        thinking = self.settings.thinking
        return "as_written" if thinking == "keep" and not self.traits.thinks else thinking

    def settled(self, conversation: Conversation, counts: Counter[str]) -> Conversation:
        """Return a conversation in which the settings have had their effect: every ``learn`` is known.

        ``system`` is then what to render; None: no system turn. What was done is added to ``counts``.

        Raises:
            Unrenderable: the template has no place for a part of it.
        """
        self._refuse_unknown(conversation, counts)
        turns = [self._thinking(number, turn, counts) for number, turn in enumerate(conversation.turns)]
        last = max((number for number, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        everything = self.settings.learn == "all"
        settled: list[Turn] = []
        for number, turn in enumerate(turns):
            learn = (everything or number == last) if turn.learn is None else turn.learn
            role, text, reasoning, calls, _, name, call_id = turn
            # The constructor and _replace take several times as long.
            fields = (role, text, reasoning, calls, learn and role == "assistant", name, call_id)
            settled.append(_new(Turn, fields))
        return conversation._replace(system=self._system(conversation), turns=tuple(settled))

    def is_settled(self, conversation: Conversation) -> bool:
        """Tell whether the settings have no effect, and every answer is learnt: a plain conversation."""
        if self.settings.learn != "all" or not is_plain(conversation):
            return False
        return not (self._parses and any("<think>" in turn.text for turn in conversation.turns))

    def unknown_options(self, conversation: Conversation) -> list[str]:
        """Return the names of the row's options that the template does not read."""
        return [name for name in conversation.options if name not in self.traits.variables]

    def _system(self, conversation: Conversation) -> str | None:
        system = self.settings.system_prompt if conversation.system is None else conversation.system
        # "None wanted" is an empty turn only where the template would else add one.
        return system if system or self.traits.adds_system else None

    def _refuse_unknown(self, conversation: Conversation, counts: Counter[str]) -> None:
        calling = next((n for n, turn in enumerate(conversation.turns) if turn.calls or turn.role == "tool"), None)
        if (conversation.tools or calling is not None) and not self.traits.knows_tools:
            where = "tools" if calling is None else field(calling, conversation.turns[calling])
            another = self._another or "choose another model or data.template"
            fault = self.traits.tools_fault
            what = (
                f"this template fails with tools: {fault}"
                if fault
                else f"this template knows no tools ({self._source})"
            )
            raise Unrenderable(where, f"{what}; {another}, or remove them")
        if not conversation.options:
            return
        for name in RESERVED & set(conversation.options):
            raise Unrenderable(f"chat_template_kwargs.{name}", "is not for a row to set; remove it")
        switch = conversation.options.get(SWITCH)
        if switch is not None and not isinstance(switch, bool):
            raise Unrenderable(SWITCH, f"is {switch!r:.40}; write true or false")
        for name in self.unknown_options(conversation):
            counts[UNKNOWN_OPTION + name[:40]] += 1

    def _thinking(self, number: int, turn: Turn, counts: Counter[str]) -> Turn:
        if turn.role != "assistant":
            return turn
        if self._parses:
            turn = _read_inline(turn)
        if turn.reasoning is None or not turn.reasoning.strip():
            return turn if turn.reasoning is None else turn._replace(reasoning=None)
        if self.settings.thinking == "strip":
            counts["thoughts_stripped"] += 1
            return turn._replace(reasoning=None)
        if self.traits.thinks:
            return turn
        if self.settings.thinking == "as_written":
            return turn._replace(reasoning=None, text=f"{OPEN}{turn.reasoning}{CLOSE}{turn.text}")
        another = f"{self._another}, or " if self._another else ""
        raise Unrenderable(f"{field(number, turn)}.reasoning", f"this template has no place for reasoning ("
                           f"{self._source}); {another}write data.thinking: strip to train without it, or as_written "
                           "to train it as text before the answer")  # fmt: skip


def field(number: int, turn: Turn) -> str:
    """Name a turn for messages."""
    return f"turn {number + 1} ({turn.role})"


def _read_inline(turn: Turn) -> Turn:
    found = _INLINE.match(turn.text) if turn.reasoning is None else None
    return turn._replace(reasoning=found[1].strip("\n"), text=turn.text[found.end() :]) if found else turn
