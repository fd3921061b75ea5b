"""Plan to Bundle, for any target."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError
from qwen_job.job.document import Path as FieldPath
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.quote import Unrepresentable

TARGETS = ("slurm", "kubernetes", "helm", "hostfile", "local")


def render(plan: Plan, target: str, template_dirs: Sequence[str | Path] = ()) -> Bundle:
    """Render the plan for one of :data:`TARGETS`; templates in ``template_dirs`` replace ours of the same name.

    A pure function: no clock, no randomness, no network. Errors: :class:`JobError` naming the field for a value that
    the target's format cannot hold.
    """
    module = importlib.import_module(f"qwen_job.render.{target}")
    try:
        bundle: Bundle = module.render(plan, template_dirs)
    except Unrepresentable as error:
        path = _locate(plan.job.model_dump(), error.value) or ()
        raise JobError([plan.job.problem(path, str(error))]) from None
    return bundle


def _locate(value: Any, wanted: Any, path: FieldPath = ()) -> FieldPath | None:
    """Return the path of the field that holds ``wanted``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item == wanted or key == wanted:
            return (*path, key)
        found = _locate(item, wanted, (*path, key))
        if found:
            return found
    return None
