"""Limits of the data, shared by the job's checks and the data's own."""

from __future__ import annotations

MAX_LENGTH = 512  # default tokens per row
MIN_LENGTH = 32  # ChatML's frame uses most of it
MAX_WEIGHT = 1000.0
