"""Plan to Bundle, for any target."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_job.errors import JobError
from qwen_job.facts.suites import INSTALL
from qwen_job.job.document import Path as FieldPath
from qwen_job.plan import Plan
from qwen_job.render.bundle import Bundle
from qwen_job.render.default_image import image_notes, package_notes, runs_an_image, suite_problems
from qwen_job.render.evaluation import evaluate_words
from qwen_job.render.quote import Unrepresentable
from qwen_job.render.references import reference_problems, sweep_problems
from qwen_job.render.secret import secret_problems
from qwen_job.render.tracker_keys import key_notes
from qwen_job.render.unused import unused_notes

# The module of each target, loaded when it is rendered.
_MODULES = {
    "slurm": "slurm.script",
    "kubernetes": "kubernetes.objects",
    "helm": "kubernetes.helm",
    "kubeflow": "kubernetes.cluster_runtime",
    "hostfile": "hostfile",
    "local": "local",
}
TARGETS = tuple(_MODULES)


def render(plan: Plan, target: str, template_dirs: Sequence[str | Path] = ()) -> Bundle:
    """Render the plan for one of :data:`TARGETS`; templates in ``template_dirs`` replace ours of the same name.

    A pure function: no clock, no randomness, no network.

    Raises:
        JobError: names the field of a value that the target's format cannot represent, of a secret that its files
            would expose, or of a sweep, which fits into one bundle on Slurm only (see :func:`render_each`).
    """
    if plan.sweep and target != "slurm":
        message = f"on {target} each of its {len(plan.sweep)} runs is a separate bundle: render them with -o DIR"
        raise JobError([plan.job.problem(("sweep",), message)])
    found = (
        *secret_problems(plan, target), *reference_problems(plan, target), *sweep_problems(plan),
        *suite_problems(plan, target),
    )  # fmt: skip
    if problems := list(dict.fromkeys(found)):
        raise JobError(problems)
    folders = [*template_dirs, *_own_templates(plan)]
    module = importlib.import_module(f"qwen_job.render.{_MODULES[target]}")
    try:
        bundle: Bundle = module.render(plan, folders)
    except Unrepresentable as error:
        path = _locate(plan.job.model_dump(), error.value) or ()
        raise JobError([plan.job.problem(path, str(error))]) from None
    more = (
        *image_notes(plan, target),
        *package_notes(plan, target),
        *unused_notes(plan, target),
        *key_notes(plan, target),
    )
    notes = (*bundle.notes, *more, *_evaluation_notes(plan, target))
    return replace(bundle, run=plan.job.output, notes=notes)


def _evaluation_notes(plan: Plan, target: str) -> Iterator[str]:
    """Yield where an evaluation is not part of the job, and what its suite needs on the nodes."""
    if plan.job.evaluate is None:
        return
    if target == "kubeflow" or (target == "hostfile" and plan.job.hostfile.launcher == "pdsh"):
        where = "with hostfile.launcher: pdsh" if target == "hostfile" else f"on {target}"
        command = shlex.join(["qwen-job", *evaluate_words(plan)])
        yield f"evaluate: not part of the job {where}; after the training run: {command}"
    suite = plan.job.evaluate.suite
    if suite is not None:
        image = runs_an_image(plan, target)
        where, command = ("in the image", "'make image PACKAGES=lm-eval'") if image else ("on the nodes", INSTALL)
        yield (
            f"evaluate.suite: lm-eval must be {where}: {command}; and the data of its tasks on the nodes: where they "
            "have no internet access, 'qwen-job evaluate --check' with the same tasks and HF_HOME"
        )


def render_each(
    plan: Plan, target: str, template_dirs: Sequence[str | Path] = (), *, separate: bool = False
) -> dict[str, tuple[Plan, Bundle]]:
    """Render a job or its sweep: folder -> plan and bundle; the folder is empty for a single bundle.

    On Slurm a sweep is one array job unless ``separate``.

    Raises:
        JobError: as :func:`render`.
    """
    if not plan.sweep or (target == "slurm" and not separate):
        return {"": (plan, render(plan, target, template_dirs))}
    if problems := list(sweep_problems(plan)):
        raise JobError(problems)
    return {run.folder: (run.plan, render(run.plan, target, template_dirs)) for run in plan.sweep}


def _own_templates(plan: Plan) -> list[str]:
    """Return the job's own template folders.

    Raises:
        JobError: for a folder that does not exist.
    """
    problems = [
        plan.job.problem(("template_dirs", index), f"{folder}: does not exist or is not a folder")
        for index, folder in enumerate(plan.job.template_dirs)
        if not Path(folder).is_dir()
    ]
    if problems:
        raise JobError(problems)
    return plan.job.template_dirs


def _locate(value: Any, wanted: Any, path: FieldPath = ()) -> FieldPath | None:
    """Return the path of the field with the value ``wanted``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item == wanted or key == wanted:
            return (*path, key)
        found = _locate(item, wanted, (*path, key))
        if found:
            return found
    return None
