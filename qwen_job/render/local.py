"""Target local: this machine, through the same node script as on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen_job.errors import JobError
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.context import shell_context
from qwen_job.render.engine import render_template
from qwen_job.render.evaluation import check_words, evaluate_words


def render(plan: Plan, folders: Sequence[str | Path] = ()) -> Bundle:
    """Return run.sh.

    Raises:
        JobError: for more than one node.
    """
    if plan.nodes > 1:
        message = f"{plan.nodes} nodes, but this machine is only one; set cluster.nodes: 1, or choose another target"
        raise JobError([plan.job.problem(("cluster", "nodes"), message)])
    context = shell_context(
        plan, folders, python=plan.job.local.python, evaluate=evaluate_words(plan), check_suite=check_words(plan)
    )
    return Bundle(
        "local", {"run.sh": render_template("local/run.sh.j2", context, folders)}, "run.sh", frozenset({"run.sh"})
    )
