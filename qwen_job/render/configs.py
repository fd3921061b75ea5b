"""The files that every target carries: job.yaml, train.yaml, deepspeed.json, and sweep.json for the run of a sweep."""

from __future__ import annotations

from typing import Any

from qwen_job import __version__
from qwen_job.plan import Plan
from qwen_job.plan.train_config import train_config
from qwen_job.render.quote import to_json, to_yaml
from qwen_job.run.config import to_values
from qwen_job.run.folder import DEEPSPEED, JOB, TRAIN


def config_files(plan: Plan) -> dict[str, str]:
    """Return file name -> text of exactly what runs, for the run folder."""
    return {
        JOB: to_yaml(job_document(plan)),
        TRAIN: f"# Written by qwen-job {__version__}; job.yaml beside it is what it was made from.\n"
        + to_yaml(to_values(train_config(plan))),
        DEEPSPEED: to_json(plan.deepspeed_config) + "\n",
    }


def sweep_index(plan: Plan) -> str:
    """Return sweep.json of the sweep that this is a run of: its runs in order; empty for a run of no sweep."""
    if plan.swept is None:
        return ""
    runs = [{"folder": folder, "values": values} for folder, values in plan.swept.runs]
    return to_json({"version": 1, "name": plan.swept.name, "runs": runs}) + "\n"


def job_document(plan: Plan) -> dict[str, object]:
    """Return the job as written, with all layers merged and paths resolved."""
    document: dict[str, object] = plan.job.model_dump(mode="json", exclude_unset=True)
    return {key: _literal(value, (key,)) for key, value in document.items()}


def _literal(value: Any, path: tuple[str, ...]) -> Any:
    """Double the dollar of ``${...}``: references are already replaced, so anything that looks like one is text."""
    if isinstance(value, dict):
        return {key: _literal(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item, path) for item in value]
    if isinstance(value, str) and path[:2] != ("slurm", "setup"):
        return value.replace("${", "$${")
    return value
