"""The settings of a job that decide what a conversation is rendered as, and what of it is learnt."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.chat.traits import Traits
from qwen_job.facts import choices


class ChatSettings(NamedTuple):
    """See the fields of the same names in job.yaml's data section. ``system_prompt`` None: the template's default."""

    system_prompt: str | None = None
    learn: choices.Learn = "all"
    thinking: choices.Thinking = "keep"
    empty_think: choices.EmptyThink = "auto"
    several_thoughts: choices.SeveralThoughts = "split"


def resolved_empty_think(setting: choices.EmptyThink, traits: Traits) -> tuple[choices.EmptyThink, str]:
    """Return what to do with turns without reasoning (learn, mask or omit), and why; omit if there is no thinking."""
    if not traits.thinks:
        return "omit", "the template has no place for reasoning"
    if setting != "auto":
        return setting, "as data.empty_think says"
    if traits.has_switch:
        why = "turns without reasoning are trained as with thinking off, whose prompt holds the empty block: " \
              "the model learns to answer there, and thinking on stays as it was"  # fmt: skip
        return "mask", why
    return "mask", "every prompt of this template opens a thought: learning to close it at once would end the thinking"
