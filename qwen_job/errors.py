"""Every error that a user can meet, and the exit code that each one gives.

QwenJobError                      1  internal error (a bug: please report it)
├── UsageError                    2  the command line is wrong
├── JobError                      3  job.yaml (or a layer, or --set) is invalid
├── DataError                     4  the conversations are invalid
├── EnvironmentFault              5  this machine lacks something: a file, a tool, a permission, a package
├── ClusterRefused                6  the scheduler or the API server said no
├── TrainingDiverged              7  the loss became NaN or exploded
├── NoProgress                    8  retried without the checkpoint moving on: a person must look
├── ModelError                    9  the model folder or its config is invalid
├── OutOfMemory                  10  the job does not fit the GPU: the plan must change
└── Retryable                   128+ running the same job again is right; it resumes by itself
    ├── StoppedAndSaved         160  a signal, preemption or the time limit; the state was saved
    ├── Hang                    161  a rank stopped moving; the watchdog ended the run
    ├── RendezvousFailed        162  the nodes did not meet in time
    └── NodeUnhealthy           163  a node failed its checks; the next try leaves it out

137 (killed, often by the host's memory limit), 143 (terminated) and every other 128+N come from signals and are
retryable too. Kubernetes' restartPolicy ExitCode and the sbatch script both read the table this way: 1-127 is final,
128-255 is tried again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qwen_job.text import visible

RETRYABLE_FROM = 128
# Lines of one error; who mends the first hundred sees the next.
MOST_SHOWN = 100


class QwenJobError(Exception):
    """Base of every error that qwen-job reports in one clear message instead of a traceback."""

    exit_code = 1


class UsageError(QwenJobError):
    """The command line is wrong."""

    exit_code = 2


class Problem(NamedTuple):
    """One thing wrong in one place of a user's file.

    ``line`` and ``column`` count from 1; 0 means that the place has no line (a ``--set``, a missing file).
    """

    source: str
    line: int
    column: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}:{self.column}" if self.line else self.source
        return ": ".join(visible(part) for part in (where, self.field, self.message) if part)


class JobError(QwenJobError):
    """job.yaml, one of its layers or a ``--set`` is invalid; carries all problems at once."""

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
    """This machine lacks something: a file, a tool, a permission, a package."""

    exit_code = 5


class ClusterRefused(QwenJobError):
    """The scheduler or the API server said no."""

    exit_code = 6


class TrainingDiverged(QwenJobError):
    """The loss became NaN or exploded."""

    exit_code = 7


class NoProgress(QwenJobError):
    """Retried without the checkpoint moving on."""

    exit_code = 8


class ModelError(QwenJobError):
    """The model folder or its config is invalid."""

    exit_code = 9


class OutOfMemory(QwenJobError):
    """The job does not fit the GPU."""

    exit_code = 10


class Retryable(QwenJobError):
    """Running the same job again is right."""

    exit_code = RETRYABLE_FROM


class StoppedAndSaved(Retryable):
    """A signal, preemption or the time limit ended the run after its state was saved."""

    exit_code = 160


class Hang(Retryable):
    """A rank stopped moving; the watchdog ended the run."""

    exit_code = 161


class RendezvousFailed(Retryable):
    """The nodes did not meet in time."""

    exit_code = 162


class NodeUnhealthy(Retryable):
    """A node failed its checks."""

    exit_code = 163


def is_retryable(exit_code: int) -> bool:
    """Tell whether a process that ended with ``exit_code`` (0-255) should be run again unchanged."""
    return exit_code >= RETRYABLE_FROM


def table() -> list[tuple[int, str, str]]:
    """Return the table of exit codes as rows (code, error name, meaning), lowest code first."""
    rows = [(0, "", "success")]
    pending: list[type[QwenJobError]] = [QwenJobError]
    while pending:
        error = pending.pop(0)
        # A room's own subclass shares its parent's code, and whether it is imported must not change the table.
        pending.extend(kind for kind in error.__subclasses__() if kind.__module__ == __name__)
        rows.append((error.exit_code, error.__name__, (error.__doc__ or "").split("\n")[0].rstrip(".")))
    return sorted(rows)
