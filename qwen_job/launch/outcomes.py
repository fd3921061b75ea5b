"""Compare the runs of a sweep: the values of each and its result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_job.errors import UsageError
from qwen_job.job import Job
from qwen_job.launch.backend import NOT_STARTED
from qwen_job.run.folder import RunFolder
from qwen_job.run.metrics import last_metric
from qwen_job.run.owner import check_readable
from qwen_job.run.progress import Progress, progress_of
from qwen_job.run.reading import number, read_object
from qwen_job.run.sweep_index import sweep_runs
from qwen_job.text import json_text

_SEED = "train.seed"


@dataclass(frozen=True)
class Outcome:
    """One run; ``loss`` is the last step's, ``mean_loss`` the mean over all steps of a finished training."""

    folder: str
    values: dict[str, Any]
    progress: Progress
    loss: float | None
    mean_loss: float | None
    eval_loss: float | None

    @property
    def state(self) -> str:
        """The state that the run reports."""
        return self.progress.state or NOT_STARTED


def outcomes(folder: str, runs: list[tuple[str, dict[str, Any]]]) -> list[Outcome]:
    """Return the runs below ``folder``, best first: by loss on held-out data if there is one, else by the mean loss.

    Unfinished runs come last.
    """
    found = [_outcome(folder, name, values) for name, values in runs]
    by_eval = any(outcome.eval_loss is not None for outcome in found)

    def order(outcome: Outcome) -> tuple[bool, float]:
        loss = outcome.eval_loss if by_eval else outcome.mean_loss
        return outcome.state != "done", math.inf if loss is None or math.isnan(loss) else loss

    return sorted(found, key=order)


@dataclass(frozen=True)
class OverSeeds:
    """The finished runs of one setting that differ in train.seed only.

    ``mean`` and ``spread``, their sample standard deviation, are of the figure that orders the runs: the held-out loss
    (``held_out``) or the mean loss. ``count`` of ``planned`` runs have it.
    """

    values: dict[str, Any]
    mean: float
    spread: float
    count: int
    planned: int
    held_out: bool


def over_seeds(found: Sequence[Outcome]) -> list[OverSeeds]:
    """Return each setting that has results for two seeds or more, best first; nothing where no seeds are swept."""
    settings: dict[str, list[Outcome]] = {}
    for outcome in found:
        if _SEED in outcome.values:
            settings.setdefault(json_text(_without_seed(outcome)), []).append(outcome)
    held_out = any(outcome.eval_loss is not None for outcome in found)
    result = []
    for runs in settings.values():
        done = [run.eval_loss if held_out else run.mean_loss for run in runs if run.state == "done"]
        losses = [loss for loss in done if loss is not None and math.isfinite(loss)]
        if len(losses) > 1:
            mean, spread = statistics.mean(losses), statistics.stdev(losses)
            result.append(OverSeeds(_without_seed(runs[0]), mean, spread, len(losses), len(runs), held_out))
    return sorted(result, key=lambda one: one.mean)


def _without_seed(outcome: Outcome) -> dict[str, Any]:
    return {field: value for field, value in outcome.values.items() if field != _SEED}


def runs_of_job(job: Job) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Return the folder of a job's sweep and its runs.

    Raises:
        UsageError: the job is not a sweep.
    """
    if not job.points:
        raise UsageError(
            f"{job.name} has no sweep; add one to job.yaml, e.g. sweep: {{train.learning_rate: [1e-5, 2e-5]}}"
        )
    return job.output, [(point.folder, point.values) for point in job.points]


def runs_of_folder(folder: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """Return the runs listed in the sweep's index in ``folder``.

    Raises:
        UsageError: the folder has no index.
        EnvironmentFault: the folder cannot be read.
    """
    check_readable(folder)
    runs = sweep_runs(folder)
    if runs is None:
        raise UsageError(f"{folder}: has no sweep.json; give the sweep's output folder or its job.yaml")
    return str(folder), [(run.folder, run.values) for run in runs]


def _outcome(folder: str, name: str, values: dict[str, Any]) -> Outcome:
    run = RunFolder(Path(folder, name))
    progress, done = progress_of(str(run.path)), read_object(run.done)
    eval_loss = number(done.get("eval_loss"))
    if eval_loss is None:
        eval_loss = _held_out(run.evaluation)
    if eval_loss is None:
        eval_loss = _last_eval(run)
    return Outcome(name, values, progress, progress.loss, number(done.get("train_loss")), eval_loss)


def _held_out(path: Path) -> float | None:
    """Return the loss that the evaluation job measured."""
    after = read_object(path).get("after")
    return number(after.get("loss")) if isinstance(after, dict) else None


def _last_eval(run: RunFolder) -> float | None:
    """Return the loss of the last evaluation in metrics.jsonl."""
    return number(last_metric(run.path, "eval").get("loss"))
