"""Tasks in order of priority under one deadline; their results are in one file, which another day resumes.

A task is a function that gets its deadline and a scratch file and returns its figures. What it has measured by the
time it fails or runs out of time counts: the file names it ``partial``, and the next day takes the task up again.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.atomic import write_atomically

ROOT = Path(__file__).resolve().parents[2]
# A process that was killed gives its memory back within this time; the tables are written, too.
LEAST_SECONDS = 5.0


class OutOfTime(Exception):
    """The deadline has passed; ``figures``: what was measured until then."""

    def __init__(self, figures: dict[str, Any] | None = None) -> None:
        super().__init__("out of time")
        self.figures = figures or {}


class Failed(Exception):
    """A task could not be done; ``figures``: what was measured until then."""

    def __init__(self, reason: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


class Task(NamedTuple):
    """``seconds``: what it is expected to take; it is not begun with less. ``work(deadline)`` returns its figures.

    ``limit``: the seconds after which it is cut off, so that the others get their time.
    """

    name: str
    seconds: float
    work: Callable[[float], dict[str, Any]]
    limit: float = float("inf")


class Results:
    """The results of one machine and one state of the code, in ``path``."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path = path
        self.machine = {**machine, "code": code_id()}
        self.tasks: dict[str, dict[str, Any]] = {}

    def resume(self) -> str | None:
        """Take over what the file has from the same GPU and the same code; returns what to tell about it.

        A file of another GPU or of other code is kept under another name.
        """
        if not self.path.exists():
            return None
        earlier = json.loads(self.path.read_text(encoding="utf-8"))
        if other := [key for key in ("gpu", "code") if earlier["machine"].get(key) != self.machine.get(key)]:
            kept = self.path.with_name(f"results-{earlier['machine'].get('code')}.json")
            self.path.rename(kept)
            return f"{self.path.name} is of another {' and '.join(other)}: kept as {kept.name}, starting from nothing"
        self.tasks = earlier["tasks"]
        return "resuming: " + ", ".join(f"{name} {task['state']}" for name, task in self.tasks.items())

    def note(self, name: str, state: str, seconds: float, figures: dict[str, Any], reason: str = "") -> None:
        """Record a task in the file at once: the machine may be gone a moment later."""
        self.tasks[name] = {"state": state, "seconds": round(seconds, 1), "reason": reason, "figures": figures}
        write_atomically(self.path, json.dumps({"machine": self.machine, "tasks": self.tasks}, indent=1) + "\n")


def run_day(
    tasks: Sequence[Task], results: Results, seconds: float, say: Callable[[str], None], clock: Any = time.monotonic
) -> None:
    """Work off ``tasks`` that are not done yet, first those that were never begun, within ``seconds``."""
    deadline = clock() + seconds
    missing = [task for task in tasks if results.tasks.get(task.name, {}).get("state") != "done"]
    for task in sorted(missing, key=lambda task: results.tasks.get(task.name, {}).get("state") == "failed"):
        left = deadline - clock()
        if left < task.seconds:
            say(f"{task.name}: needs about {task.seconds:.0f} s, and {max(0.0, left):.0f} are left: not begun")
            continue
        say(f"{task.name}: about {task.seconds:.0f} s of {left:.0f}")
        began = clock()
        state, figures, reason = _attempt(task, min(deadline, began + task.limit))
        results.note(task.name, state, clock() - began, figures, reason)
        say(f"{task.name}: {state} after {clock() - began:.0f} s{': ' if reason else ''}{reason}")


def _attempt(task: Task, deadline: float) -> tuple[str, dict[str, Any], str]:
    try:
        return "done", task.work(deadline - LEAST_SECONDS), ""
    except OutOfTime as error:
        return "partial", error.figures, str(error)
    except Failed as error:
        return "failed", error.figures, str(error)
    except Exception as error:  # the next task may be of use all the same
        return "failed", {}, f"{type(error).__name__}: {error}"


def code_id() -> str:
    """Return a hash of what is measured and of what measures it: a copy of the tree has no commit."""
    digest = hashlib.sha256()
    for room in ("qwen_job", "benchmarks", "tests/gpu"):
        for path in sorted((ROOT / room).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str | None:
    """Return the checkout's commit, None in a copy without one."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
