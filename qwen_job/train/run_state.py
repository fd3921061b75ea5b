"""What a run remembers from checkpoint to checkpoint besides weights and optimizer: the step, and the best loss."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from qwen_job.run.folder import STATE


@dataclasses.dataclass
class RunState:
    """The content of a checkpoint's trainer_state.json, by the names that transformers gave it.

    ``epoch`` counts epochs done, as a fraction; ``best_global_step`` is the step of the lowest held-out loss.
    """

    global_step: int = 0
    max_steps: int = 0
    epoch: float = 0.0
    best_metric: float | None = None
    best_global_step: int | None = None

    @classmethod
    def load(cls, checkpoint: Path) -> RunState:
        """Read a checkpoint's state; of one that transformers' Trainer wrote, only these fields."""
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def text(self) -> str:
        """Return the content of trainer_state.json."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    def note_held_out(self, loss: float, *, saves: bool) -> bool:
        """Note a held-out loss and tell whether it is the lowest; its step counts only in a run that ``saves``."""
        best = math.inf if self.best_metric is None else self.best_metric
        self.best_metric = best
        if not loss < best:
            return False
        self.best_metric = loss
        if saves:
            self.best_global_step = self.global_step
        return True
