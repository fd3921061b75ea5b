"""The keys of experiment trackers: without one, a job waits in the queue and then ends with exit code 5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qwen_job.job import Job
from qwen_job.plan import Plan


class TrackerKey(NamedTuple):
    """The variable with a tracker's key, the command that stores it, the variable that needs none, and its file."""

    variable: str
    login: str
    switch: str
    file: str


TRACKER_KEYS = {
    "wandb": TrackerKey("WANDB_API_KEY", "wandb login", "WANDB_MODE", "~/.netrc"),
    "swanlab": TrackerKey("SWANLAB_API_KEY", "swanlab login", "SWANLAB_MODE", "~/.swanlab/.netrc"),
}
# Values of a switch with which a tracker contacts no server.
_WITHOUT = ("offline", "disabled", "dryrun", "local")


def wanted_keys(job: Job, environ: Mapping[str, str]) -> list[tuple[str, TrackerKey]]:
    """Return the trackers of a job whose key is not in ``environ``, unless they are switched off line there."""
    return [
        (tracker, key)
        for tracker, key in TRACKER_KEYS.items()
        if tracker in job.train.report_to
        and not environ.get(key.variable)
        and environ.get(key.switch, "").lower() not in _WITHOUT
    ]


def key_notes(plan: Plan, target: str) -> Iterator[str]:
    """Yield a note for each tracker whose key no pod would have."""
    section = plan.job.kubernetes
    if target not in ("kubernetes", "helm", "kubeflow") or section.pod_container or section.pod:
        return
    for tracker, key in wanted_keys(plan.job, {**plan.job.env, **section.secret_env}):
        yield (
            f"train.report_to: {tracker} needs {key.variable}, which the pods do not have: write "
            f"kubernetes.secret_env: {{{key.variable}: SECRET/KEY}}, or env: {{{key.switch}: offline}}"
        )
