"""A decision: one number or word of the plan, and why it is what it is."""

from __future__ import annotations

from typing import Any, NamedTuple


class Decision(NamedTuple):
    """``value`` of ``field``; ``written`` when the user wrote it, otherwise chosen for ``reason``."""

    field: str
    value: Any
    reason: str
    written: bool


class Ledger:
    """Collects decisions in the order in which they are made."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def decide(self, field: str, written: Any, chosen: Any, reason: str) -> Any:
        """Return ``written`` if there is one, else ``chosen``, and note which and why."""
        if written is not None:
            self.decisions.append(Decision(field, written, "written in the job", True))
            return written
        self.decisions.append(Decision(field, chosen, reason, False))
        return chosen
