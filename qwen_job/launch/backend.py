"""The interface that every target implements: submit, list, logs, cancel."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from qwen_job.render.bundle import Bundle
from qwen_job.run.progress import Progress

# The class of each target, loaded when it is needed.
_CLASSES = {
    "slurm": "slurm.backend:SlurmBackend",
    "kubernetes": "kubernetes.backend:KubernetesBackend",
    "local": "local:LocalBackend",
}
TARGETS = tuple(_CLASSES)
# States of our own: the job has left its queue; the queue is unreachable; a sweep's run that is yet to start.
GONE, UNKNOWN, NOT_STARTED = "gone", "unknown", "not started"
_OVER = {GONE, "completed", "cancelled", "failed", "timeout", "node_fail", "preempted", "boot_fail", "deadline"}
_OVER |= {"out_of_memory"}


@dataclass(frozen=True)
class Entry:
    """One job as its queue knows it.

    ``state`` is the queue's own word in lower case (pending, running, completed ...); ``reason`` explains it in one
    line. ``pods`` is how many of its pods run, as 1/2, where it has any. ``run`` is the run folder if the queue knows
    it; ``log`` is where to read the output. A ``forgotten`` job has left its queue: its state comes from accounting,
    or is one of the two above. ``user`` is its owner, ``cluster`` the Slurm cluster that it is on, of several.
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
    """The result of a submission: the job's id, and the exit code of a job that ran here to its end.

    ``then`` are the ids of the jobs that wait for this one; ``cluster`` is the Slurm cluster, of several.
    """

    id: str
    exit_code: int = 0
    then: tuple[str, ...] = ()
    cluster: str = ""


class Backend(ABC):
    """A target that jobs can be sent to. Only the abstract methods are required."""

    @abstractmethod
    def available(self) -> bool:
        """Tell whether this machine has the target's command line tools."""

    def set_up(self) -> bool:
        """Tell whether this machine knows a cluster of the target; otherwise only who names the target needs it."""
        return self.available()

    @abstractmethod
    def submit(self, bundle: Bundle, options: Sequence[str] = ()) -> Submitted:
        """Submit the bundle, on Slurm with more options for sbatch."""

    @abstractmethod
    def entries(self, cluster: str = "") -> list[Entry]:
        """Return the jobs in the queue (of ``cluster``, where there are several), newest first."""

    @abstractmethod
    def logs(self, entry: Entry, *, follow: bool) -> int:
        """Print the job's output, and keep following it with ``follow``; return an exit code."""

    @abstractmethod
    def cancel(self, entry: Entry) -> None:
        """End the job; it is not requeued."""

    def is_mine(self, entry: Entry) -> bool:
        """Tell whether the job belongs to the user."""
        return True

    def endings(self, ids: Sequence[str], cluster: str = "") -> dict[str, tuple[str, str]]:
        """Return id -> (state, reason) for jobs that have left the queue, as far as accounting knows them."""
        return {}

    def progress(self, entries: Sequence[Entry], seconds: float) -> list[Progress]:
        """Return the progress of running jobs whose run folders this machine does not see, within ``seconds``."""
        return [Progress() for _ in entries]

    def is_unexplained(self, entry: Entry) -> bool:
        """Tell whether :meth:`reasons` may know more about the job's state than the queue does."""
        return False

    def reasons(self, entries: Sequence[Entry], seconds: float) -> list[str]:
        """Return for each job why it waits or failed, empty where unknown, within ``seconds``."""
        return ["" for _ in entries]


def backend(target: str) -> Backend:
    """Return the backend of ``target``, one of :data:`TARGETS`."""
    module, _, name = _CLASSES[target].partition(":")
    made: Backend = getattr(importlib.import_module(f"qwen_job.launch.{module}"), name)()
    return made
