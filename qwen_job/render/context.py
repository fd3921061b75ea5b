"""What the templates of all targets are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen_job import __version__
from qwen_job.plan import Plan
from qwen_job.render.configs import config_files, sweep_index
from qwen_job.render.container import node_settings
from qwen_job.render.engine import render_template


def shell_context(
    plan: Plan,
    folders: Sequence[str | Path],
    *,
    python: str,
    runtime: str = "none",
    modules: Sequence[str] = (),
    setup: Sequence[str] = (),
    launcher: str = "torchrun",
    preflight: Sequence[str] = (),
    scratch: str | None = None,
    evaluate: Sequence[str] = (),
    check_suite: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the context of a shell script: the configs, the node script and the job's numbers."""
    common = {
        "version": __version__,
        "name": plan.job.name,
        "run": plan.job.output,
        "nodes": plan.nodes,
        "gpus_per_node": plan.gpus_per_node,
        "env": plan.env,
        "python": python,
        "launcher": launcher,
        "grace": plan.job.retry.grace,
        "in_place": plan.job.retry.in_place,
        # A complete run that is to train longer still has its done.json.
        "extend": plan.job.train.resume == "extend",
    }
    node = {
        **common,
        "modules": list(modules),
        "setup": list(setup),
        "preflight": list(preflight),
        "scratch": scratch,
        "evaluate": list(evaluate),
        "check_suite": list(check_suite),
        **node_settings(plan, runtime),
    }
    node_script = render_template("common/node.sh.j2", node, folders)
    sweep = {"sweep_folder": plan.swept.folder if plan.swept else "", "sweep_index": sweep_index(plan)}
    return {**common, **sweep, "files": config_files(plan), "node_script": node_script}


def node_check(plan: Plan, min_gbs: float | None = None) -> list[str]:
    """Return the options of 'qwen-job node check' that the plan knows; ``min_gbs``: the site's lower limit in GB/s."""
    words = ["--gpus", "0" if plan.gpu.is_cpu else str(plan.gpus_per_node), "--nodes", str(plan.nodes)]
    if not plan.gpu.is_cpu:
        words += ["--gpu", plan.gpu.name, str(plan.gpu.compute_capability), str(plan.gpu.memory_bytes or 0)]
    if plan.interconnect not in ("none", "auto"):
        words += ["--fabric", plan.interconnect]
    if min_gbs is not None:
        words += ["--min-gbs", f"{min_gbs:g}"]
    if plan.memory is not None:
        words += ["--disk-bytes", str(plan.memory.disk_bytes)]
    return words
