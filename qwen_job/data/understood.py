"""Count what the rows of a data set hold besides plain turns, so that it is reported once what was understood."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from qwen_job.chat.conversation import Conversation, is_plain

# Prefixes of the counters of rows: by format, and by what they hold.
FORMAT, HOLDS = "format/", "holds/"
_KINDS = ("tools", "calls", "results", "reasoning", "switches of what is learnt", "options of the template")


def understood(conversation: Conversation) -> tuple[str, ...]:
    """Return what a conversation holds besides plain turns, as a report names it."""
    if is_plain(conversation):
        return ()
    turns = conversation.turns
    held = (
        bool(conversation.tools),
        any(turn.calls for turn in turns),
        any(turn.role == "tool" for turn in turns),
        any(turn.reasoning for turn in turns),
        any(turn.learn is not None for turn in turns),
        bool(conversation.options),
    )
    return tuple(kind for kind, holds in zip(_KINDS, held, strict=True) if holds)


def read_counts(counts: Counter[str]) -> dict[str, dict[str, int]]:
    """Return the counts under both prefixes: rows by format, and rows by what they hold."""
    return {
        "formats": _under(FORMAT, counts),
        "holds": {kind: counts[HOLDS + kind] for kind in _KINDS if counts[HOLDS + kind]},
    }


def is_read_count(name: str) -> bool:
    """Tell whether a counter is one of those that :func:`read_counts` returns."""
    return name.startswith((FORMAT, HOLDS))


def describe_read(read: Mapping[str, Mapping[str, int]]) -> str:
    """Describe what was understood; ``read`` is that of :func:`read_counts`."""
    rows = sum(read["formats"].values())
    formats = ", ".join(f"{count:,} as {name}" for name, count in read["formats"].items())
    holds = ", ".join(f"{count:,} with {kind}" for kind, count in read["holds"].items())
    return f"rows read: {formats or 'none'}" + (f"; of {rows:,} rows, {holds}" if holds else "")


def _under(prefix: str, counts: Counter[str]) -> dict[str, int]:
    return {name.removeprefix(prefix): counts[name] for name in sorted(counts) if name.startswith(prefix)}
