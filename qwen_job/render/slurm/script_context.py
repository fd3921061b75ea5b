"""What the templates of a Slurm job need to know about one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job.plan import Plan
from qwen_job.render.context import shell_context


def slurm_context(plan: Plan, folders: Sequence[str | Path], **more: Any) -> dict[str, Any]:
    """Return the shell context of a run with the ``slurm`` section's settings; ``more`` goes to shell_context."""
    slurm = plan.job.slurm
    return shell_context(
        plan,
        folders,
        python=slurm.python,
        runtime=plan.job.container.runtime,
        modules=slurm.modules,
        setup=slurm.setup,
        scratch=slurm.scratch,
        **more,
    )
