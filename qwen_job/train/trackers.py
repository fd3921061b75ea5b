"""Experiment trackers: whether what report_to names is installed, before minutes are spent on model and data."""

from __future__ import annotations

from importlib.util import find_spec

from qwen_job.errors import JobError, Problem
from qwen_job.train.config import TrainConfig

# By the names of transformers; any one of the packages will do.
_PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "swanlab": ("swanlab",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
    "comet_ml": ("comet_ml",),
    "neptune": ("neptune",),
    "clearml": ("clearml",),
    "dvclive": ("dvclive",),
}


def check_trackers(config: TrainConfig) -> None:
    """Refuse a tracker that is not installed here.

    Raises:
        JobError: names it, and what to do.
    """
    problems = []
    for name in config.training.report_to:
        packages = _PACKAGES.get(name, ())
        if packages and not any(find_spec(package) for package in packages):
            advice = (
                f"is not installed here: add 'pip install {packages[0]}' to the image, or write another name or none"
            )
            problems.append(Problem("train.yaml", 0, 0, "training.report_to", f"{name} {advice}"))
    if problems:
        raise JobError(problems)
