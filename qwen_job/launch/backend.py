"""One small face for every target: submit, list, logs, cancel."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol

from qwen_job.render.bundle import Bundle

# The module of each target, loaded when it is needed.
_MODULES = {"slurm": "slurm.backend", "kubernetes": "kubernetes.backend", "local": "local"}
TARGETS = tuple(_MODULES)
# States of our own: the queue has forgotten the job; the queue could not be asked.
GONE, UNKNOWN = "gone", "unknown"
_OVER = {GONE, "completed", "cancelled", "failed", "timeout", "node_fail", "preempted", "boot_fail", "deadline"}
_OVER |= {"out_of_memory"}


@dataclass(frozen=True)
class Entry:
    """One job as its queue knows it.

    ``state`` is the queue's own word in lower case (pending, running, completed ...); ``reason`` says in one line why
    it is there. ``pods`` tells how many of them run, as 1/2, where there are any. ``run`` is the run's folder where
    the queue tells it; ``log`` what to read the output from. Of a job that is ``forgotten`` the queue knows nothing:
    its state is the accounting's, or one of the words below. ``user`` is its owner, ``cluster`` the one of several
    Slurm clusters that has it.
    """

    target: str
    id: str
    name: str
    state: str
    reason: str = ""
    run: str = ""
    log: str = ""
    nodes: str = ""
    pods: str = ""
    restarts: int = 0
    forgotten: bool = False
    user: str = ""
    cluster: str = ""

    @property
    def shown_id(self) -> str:
        """Return the id as it is printed: 12, or 12@CLUSTER."""
        return f"{self.id}@{self.cluster}" if self.cluster else self.id

    @property
    def is_over(self) -> bool:
        """Tell whether the job has ended for good."""
        return self.state in _OVER


@dataclass(frozen=True)
class Submitted:
    """What a submission came to: the job's id, and the exit code of a job that ran here to its end.

    ``then`` are the ids of the jobs that wait for this one; ``cluster`` is the one of several Slurm clusters.
    """

    id: str
    exit_code: int = 0
    then: tuple[str, ...] = ()
    cluster: str = ""


class Backend(Protocol):
    """What a target's module offers as functions."""

    def available(self) -> bool:
        """Tell whether this machine can talk to the target at all."""

    def submit(self, bundle: Bundle) -> Submitted:
        """Hand the bundle over."""

    def entries(self) -> list[Entry]:
        """Return the user's jobs that the queue still knows, newest first."""

    def logs(self, entry: Entry, *, follow: bool) -> int:
        """Print the job's output, and go on with it when following; return an exit code."""

    def cancel(self, entry: Entry) -> None:
        """End the job; it is not requeued."""


def backend(target: str) -> Backend:
    """Return the backend of ``target``, one of :data:`TARGETS`."""
    module: Backend = importlib.import_module(f"qwen_job.launch.{_MODULES[target]}")
    return module
