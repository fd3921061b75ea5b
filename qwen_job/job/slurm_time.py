"""Slurm's way of writing a time limit."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def slurm_seconds(text: str) -> int | None:
    """Return the seconds of a time limit as sbatch's --time reads it and scontrol prints it.

    ``90`` and ``90:30`` start with minutes; ``1:30:00``, ``1-12`` (days-hours), ``1-12:30`` and ``1-12:30:00`` are the
    other forms. None for any other text, such as UNLIMITED. Only the first number may exceed its unit: 36:00:00 is
    valid, 99:99:99 is a typo.
    """
    found = _CLOCK.fullmatch(text)
    if not found:
        return None
    days, *clock = (None if part is None else int(part) for part in found.groups())
    parts = [part for part in clock if part is not None]
    first = 0 if days is not None else 1 if len(parts) == 3 else 2
    numbers = ([days] if days is not None else [0] * first) + [*parts, 0, 0]
    if any(number >= unit for number, unit in zip(numbers[first + 1 :], (24, 60, 60)[first:], strict=False)):
        return None
    return ((numbers[0] * 24 + numbers[1]) * 60 + numbers[2]) * 60 + numbers[3]
