"""When a run reports, evaluates, saves and ends: pure functions of the step and the epoch."""

from __future__ import annotations

from typing import NamedTuple

from qwen_job.run.config import TrainConfig
from qwen_job.train.arguments import Arguments
from qwen_job.train.course import steps_for


class Due(NamedTuple):
    """What to do at a step boundary, or at the end of an epoch."""

    evaluate: bool = False
    save: bool = False


class Intervals:
    """The strategies of train.yaml, for a run that ends after ``total`` steps of ``config.global_batch_size`` rows."""

    def __init__(self, config: TrainConfig, arguments: Arguments, rows: int, total: int) -> None:
        training = config.training
        self.saves = training.save_steps > 0
        self.total = total
        self._save_steps = training.save_steps if self.saves and training.save_strategy == "steps" else None
        self._save_epochs = self.saves and training.save_strategy == "epoch"
        self._eval_steps = (
            (training.eval_steps or 1) if config.evaluates and training.eval_strategy == "steps" else None
        )
        self._eval_epochs = config.evaluates and training.eval_strategy == "epoch"
        self._eval_delay = arguments.eval_delay
        self._report_first, self._report_steps = arguments.logging_first_step, training.logging_steps
        self._patience = training.early_stopping_patience
        self._between = self._eval_steps or steps_for(rows, config.global_batch_size)

    def reports(self, step: int) -> bool:
        """Tell whether the trackers get this step's figures; metrics.jsonl has every step."""
        return (step == 1 and self._report_first) or step % self._report_steps == 0

    def after_step(self, step: int) -> Due:
        """Return what is due after ``step``; the last one is evaluated and saved whatever the intervals."""
        last = step >= self.total
        evaluate = self._eval_steps is not None and self._eval_delay <= step
        save = self._save_steps is not None
        return Due(
            evaluate=evaluate and (last or step % (self._eval_steps or 1) == 0),
            save=save and (last or step % (self._save_steps or 1) == 0),
        )

    def after_epoch(self, epoch: float) -> Due:
        """Return what is due where an epoch ends, or the run within it; ``epoch`` counts epochs done."""
        return Due(evaluate=self._eval_epochs and self._eval_delay <= epoch, save=self._save_epochs)

    def is_out_of_patience(self, step: int, best_step: int | None) -> bool:
        """Tell whether early_stopping_patience evaluations have passed since ``best_step``."""
        if self._patience is None or best_step is None:
            return False
        return step - best_step >= self._patience * self._between
