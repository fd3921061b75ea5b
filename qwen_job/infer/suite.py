"""What a benchmark suite is: tasks of lm-eval by name or from a folder, and how they are asked. No torch here.

lm-eval (EleutherAI's lm-evaluation-harness) has the tasks, the prompts and the metrics; ``harness`` calls it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwen_job.atomic import sha256_of
from qwen_job.errors import UsageError
from qwen_job.facts import choices
from qwen_job.facts.suites import MOST_FILES, tasks_of


@dataclass(frozen=True)
class Suite:
    """The fields of ``evaluate.suite`` in job.yaml."""

    tasks: tuple[str, ...] = ()
    folder: Path | None = None
    limit: int | None = None
    few_shot: int | None = None
    batch_size: int | None = None
    backend: choices.SuiteBackend = "transformers"
    chat_template: bool = True
    run_code: bool = False

    def complete(self) -> Suite:
        """Return the suite with every task of its folder if it names none.

        Raises:
            UsageError: there is neither a task nor a folder with one.
        """
        if self.folder is not None and not self.folder.is_dir():
            raise UsageError(f"evaluate.suite.folder: {self.folder}: no such folder")
        if self.tasks:
            return self
        if self.folder is None:
            raise UsageError("evaluate.suite.tasks: name a task of lm-eval, or a folder of tasks")
        found = tasks_of(self.folder)
        if not found:
            raise UsageError(f"evaluate.suite.folder: {self.folder}: no .yaml file in it has a task:")
        return replace(self, tasks=tuple(found))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without what was left at its default."""
        values = {**asdict(self), "tasks": list(self.tasks), "folder": self.folder and str(self.folder)}
        return {name: value for name, value in values.items() if value not in (None, False, [])}

    def key(self, harness: str) -> str:
        """Return a hash of what decides the scores of one model: settings, files, the harness's version."""
        digest = hashlib.sha256(repr((harness, sorted(self.to_dict().items()))).encode())
        for path in self._files():
            digest.update(f"{path.relative_to(self.folder or path)}\0{sha256_of(path)}\n".encode())
        return digest.hexdigest()[:16]

    def _files(self) -> Iterator[Path]:
        if self.folder is None:
            return
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        if len(files) > MOST_FILES:
            raise UsageError(f"evaluate.suite.folder: {self.folder}: has more than {MOST_FILES:,} files")
        yield from files
