"""The image of a job that names none: the released one of this version, or in a checkout the one to build."""

from __future__ import annotations

from qwen_job import __version__
from qwen_job.errors import EnvironmentFault, JobError, Problem
from qwen_job.facts.released import released_image
from qwen_job.plan import Plan

# Trackers of train.report_to whose package no set of images has.
_NOT_IN_IMAGES = ("wandb", "swanlab", "mlflow")
# Targets whose pods always run an image.
_PODS = ("kubernetes", "helm", "kubeflow")


def image_set(plan: Plan) -> str:
    """Return the set of images that is built for the plan's GPU."""
    if plan.gpu.is_cpu:
        return "cpu"
    return "ampere" if plan.gpu.compute_capability >= 8 else "v100"


def default_image(plan: Plan) -> str | None:
    """Return the released image for the plan's GPU, by digest; None in a checkout, which has to build its own.

    Raises:
        JobError: the release has no image for this GPU.
    """
    try:
        return released_image(image_set(plan))
    except EnvironmentFault as error:
        raise JobError([plan.job.problem(("image",), f"write one: it is not set, and {error}")]) from None


def built_image(plan: Plan) -> str:
    """Return the name that ``make image`` gives to the image for the plan's GPU."""
    return f"localhost/qwen-job:{image_set(plan)}"


def how_to_build(plan: Plan) -> str:
    """Return the command that builds the image and names it for a registry."""
    name = image_set(plan)
    return f"'make image SET={name} IMAGE=REGISTRY/qwen-job:{name}'"


def runs_an_image(plan: Plan, target: str) -> bool:
    """Tell whether the job runs in an image on ``target``."""
    return target in _PODS or (target == "slurm" and plan.job.container.runtime != "none")


def package_notes(plan: Plan, target: str) -> list[str]:
    """Return a note about the trackers' packages that an image has only if it is built with them."""
    missing = [name for name in _NOT_IN_IMAGES if name in plan.job.train.report_to]
    if not missing or not runs_an_image(plan, target):
        return []
    names = " ".join(missing)
    return [
        f"train.report_to: the images of qwen-job do not have {' and '.join(missing)}; build yours with "
        f"'make image PACKAGES=\"{names}\"'"
    ]


def suite_problems(plan: Plan, target: str) -> list[Problem]:
    """Return what is wrong with a suite in the released image, which has no lm-eval: the first pod would end with 5."""
    job = plan.job
    named = job.image or (target == "slurm" and job.container.image)
    # The pods of a ClusterTrainingRuntime evaluate nothing.
    if job.evaluate is None or job.evaluate.suite is None or target == "kubeflow" or not runs_an_image(plan, target):
        return []
    if named or default_image(plan) is None:
        return []
    text = (
        "the released image, which a job without image runs, has no lm-eval; build one with 'make image "
        f"SET={image_set(plan)} PACKAGES=lm-eval' and write it as image, or remove suite and score the model later: "
        "qwen-job evaluate"
    )
    return [job.problem(("evaluate", "suite"), text)]


def image_notes(plan: Plan, target: str) -> list[str]:
    """Return a note about the image that a job runs without having named it."""
    job = plan.job
    if job.image or not runs_an_image(plan, target) or (target == "slurm" and job.container.image):
        return []
    released = default_image(plan)
    if released:
        return [f"image: not set, so the image of qwen-job {__version__} for this GPU is used: {released}"]
    return [
        f"image: not set, and a checkout has no released one, so {built_image(plan)!r} must be on the nodes: build and "
        f"push it with {how_to_build(plan)}, and set image"
    ]
