"""One small face for every target's backend."""

from __future__ import annotations

import importlib

from qwen_job.render.bundle import Bundle


def submit(bundle: Bundle) -> int:
    """Hand the bundle to its target's backend and return the exit code for this process."""
    module = importlib.import_module(f"qwen_job.launch.{bundle.target}")
    code: int = module.submit(bundle)
    return code
