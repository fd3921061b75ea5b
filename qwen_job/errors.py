"""Every error that a user can see, and its exit code.

QwenJobError                      1  internal error (a bug: please report it)
├── UsageError                    2  the command line is wrong
├── JobError                      3  job.yaml (or a layer, or --set) is invalid
├── DataError                     4  the conversations are invalid
├── EnvironmentFault              5  something is missing on this machine: a file, tool, permission or package
├── ClusterRefused                6  the scheduler or API server rejected the request
├── TrainingDiverged              7  the loss became NaN or exploded
├── NoProgress                    8  several attempts in a row wrote no newer checkpoint
├── ModelError                    9  the model folder or its config is invalid
├── OutOfMemory                  10  the job does not fit into GPU memory: change the plan
└── Retryable                   128+ run the same job again; it resumes automatically
    ├── StoppedAndSaved         160  a signal, preemption or the time limit stopped the run; its state was saved
    ├── Hang                    161  a rank made no progress; the watchdog stopped the run
    ├── RendezvousFailed        162  the nodes could not connect in time
    └── NodeUnhealthy           163  a node failed its checks; the next attempt excludes it

137 (killed, often by the host's memory limit), 143 (terminated) and every other 128+N come from signals and are also
retryable. Kubernetes' restartPolicy ExitCode and the sbatch script follow the same convention: 1-127 is final, 128-255
is retryable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qwen_job.text import visible

RETRYABLE_FROM = 128
# Maximum number of problems in one error; fixing these shows the next.
MOST_SHOWN = 100
# In front of each line of remedies.
REMEDY = "  - "


class QwenJobError(Exception):
    """An error that has no other code; an internal error asks you to report it."""

    exit_code = 1


class UsageError(QwenJobError):
    """The command line is wrong."""

    exit_code = 2


class Problem(NamedTuple):
    """One problem at one place in a user's file.

    ``line`` and ``column`` count from 1; 0 means that there is no line (a ``--set``, a missing file). Each of the
    ``remedies`` is enough alone, the cheapest first; they are printed one a line.
    """

    source: str
    line: int
    column: int
    field: str
    message: str
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        first = ": ".join(visible(part) for part in (where, self.field, self.message) if part)
        return "\n".join([first, *(f"{REMEDY}{visible(remedy)}" for remedy in self.remedies)])


class JobError(QwenJobError):
    """job.yaml, a layer or a --set is invalid; carries all problems at once."""

    exit_code = 3

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem("", 0, 0, "", problems)] if isinstance(problems, str) else list(problems)
        lines = [str(problem) for problem in self.problems[:MOST_SHOWN]]
        if len(self.problems) > MOST_SHOWN:
            lines.append(f"... and {len(self.problems) - MOST_SHOWN:,} more problems")
        super().__init__("\n".join(lines))


class DataError(QwenJobError):
    """The conversations are invalid."""

    exit_code = 4


class EnvironmentFault(QwenJobError):
    """Something is missing on this machine: a file, tool, permission or package."""

    exit_code = 5


class ClusterRefused(QwenJobError):
    """The scheduler or API server rejected the request."""

    exit_code = 6


class TrainingDiverged(QwenJobError):
    """The loss became NaN or exploded."""

    exit_code = 7


class NoProgress(QwenJobError):
    """Several attempts in a row wrote no newer checkpoint."""

    exit_code = 8


class ModelError(QwenJobError):
    """The model folder or its config is invalid."""

    exit_code = 9


class OutOfMemory(QwenJobError):
    """The job does not fit into GPU memory."""

    exit_code = 10


class Retryable(QwenJobError):
    """Run the same job again; it resumes automatically."""

    exit_code = RETRYABLE_FROM


class StoppedAndSaved(Retryable):
    """A signal, preemption or the time limit stopped the run; its state was saved."""

    exit_code = 160


class Hang(Retryable):
    """A rank made no progress; the watchdog stopped the run."""

    exit_code = 161


class RendezvousFailed(Retryable):
    """The nodes could not connect in time."""

    exit_code = 162


class NodeUnhealthy(Retryable):
    """A node failed its checks."""

    exit_code = 163


def is_retryable(exit_code: int) -> bool:
    """Return whether a job that exited with ``exit_code`` (0-255) should be run again unchanged."""
    return exit_code >= RETRYABLE_FROM


def table() -> list[tuple[int, str, str]]:
    """Return the table of exit codes as rows (code, error name, meaning), lowest code first."""
    rows = [(0, "", "success")]
    pending: list[type[QwenJobError]] = [QwenJobError]
    while pending:
        error = pending.pop(0)
        # A room's subclass shares its parent's code; the table must not depend on which rooms are imported.
        pending.extend(kind for kind in error.__subclasses__() if kind.__module__ == __name__)
        rows.append((error.exit_code, error.__name__, (error.__doc__ or "").split("\n")[0].rstrip(".")))
    return sorted(rows)
