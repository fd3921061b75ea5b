"""The settings of a job that decide what a conversation is rendered as, and what of it is learnt."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.facts import choices


class ChatSettings(NamedTuple):
    """See the fields of the same names in job.yaml's data section. ``system_prompt`` None: the template's default."""

    system_prompt: str | None = None
    learn: choices.Learn = "all"
    thinking: choices.Thinking = "keep"
    empty_think: choices.EmptyThink = "auto"
    several_thoughts: choices.SeveralThoughts = "split"
