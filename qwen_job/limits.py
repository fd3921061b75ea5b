"""Limits of the data that a job is held to before it runs, and the data's own room as it does."""

from __future__ import annotations

MAX_LENGTH = 512  # tokens of a row where nothing else is written
MIN_LENGTH = 32  # ChatML's frame takes most of it
MAX_WEIGHT = 1000.0
