"""The name that the checkpoints know; see :mod:`qwen_job.files`."""

from __future__ import annotations

from qwen_job.files import sync_folder as sync_folder
