"""What chat templates do about reasoning, and what follows for answers without it."""

from __future__ import annotations

from typing import Literal

from qwen_job.facts import choices, fact
from qwen_job.facts.lookup import UnknownName, find, read_facts

# none: no place for reasoning; always: every prompt asks for it; switch: enable_thinking decides.
Thinking = Literal["none", "always", "switch"]

_WHY = {
    "switch": "as with thinking off, the empty block is in the prompt: the model learns to answer after it, and still "
    "thinks when asked to",
    "always": "every prompt of this template opens a thought: learning to close it at once would end the thinking",
}


def resolved_empty_think(setting: choices.EmptyThink, thinking: Thinking) -> tuple[choices.EmptyThink, str]:
    """Return what to do with turns without reasoning (learn, mask or omit), and why; omit if there is no thinking."""
    if thinking == "none":
        return "omit", "the template has no place for reasoning"
    return (setting, "as data.empty_think says") if setting != "auto" else ("mask", _WHY[thinking])


def known_thinking(model: str) -> Thinking | None:
    """Return what the template of a model in facts/models does; None for another model, and for base models.

    A base model has the shape of its chat model, so it is an alias there, but its template may be another one.
    """
    try:
        values = read_facts(find(model, [fact("models")], "model"))
    except UnknownName:
        return None
    name = str(values["name"]).lower()
    found: Thinking | None = values.get("thinking")
    return found if model.strip().lower() in (name, name.rpartition("/")[2]) else None
