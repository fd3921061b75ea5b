"""Where the trainer's loop begins and ends: in rows, so that another global batch skips and repeats none."""

from __future__ import annotations

from typing import Any

from qwen_job.errors import JobError
from qwen_job.train.course import steps_for
from qwen_job.train.trainer_base import BaseTrainer


class CourseTrainer(BaseTrainer):
    """A trainer whose steps follow ``parts.identity.course``."""

    def resume_at(self, step: int) -> None:
        """Note the step whose checkpoint this run resumes from."""
        self._saved = step

    @property
    def _rows(self) -> int:
        return len(self.parts.train)

    @property
    def _width(self) -> int:
        return self.parts.config.global_batch_size

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Return the Trainer's figures, with the end of the run by our course.

        Raises:
            JobError: the checkpoint lies past the end, or at the end of a complete run that was to be extended.
        """
        values = list(super().set_initial_training_values(args, dataloader))
        course = self.parts.identity.course
        by_steps = args.max_steps > 0
        total = args.max_steps if by_steps else course.end(args.num_train_epochs, self._rows, self._width)
        self._refuse_end(total, "max_steps" if by_steps else "num_train_epochs")
        values[0], values[6] = course.at(max(total, course.step), self._rows, self._width).epoch + 1, total
        return tuple(values)

    def _refuse_end(self, total: int, field: str) -> None:
        output, saved = self.parts.config.output_dir, self._saved or 0
        wanted = getattr(self.args, field)
        if saved > total:
            raise JobError(
                f"train.{field}: {wanted:g} ends before step {saved}, which {output} has saved already; write more, "
                "or another output"
            )
        if self._extends and saved == total:
            raise JobError(f"train.{field}: {wanted:g} is step {saved}, where {output} is complete: nothing to extend")

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        super()._init_training_state(*arguments)
        course, step = self.parts.identity.course, self.state.global_step
        place = course.at(step, self._rows, self._width)
        steps = step - course.step if place.epoch == course.epoch else place.row // self._width
        return place.epoch, steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, **given: Any) -> None:  # type: ignore[override]
        if reason := self._over():
            self.parts.log.say(f"{reason}: nothing is left to train")
            self.control.should_training_stop = True
            return
        course, micro = self.parts.identity.course, self.args.per_device_train_batch_size * self.args.world_size
        rows = self._rows - (course.row if given["epoch"] == course.epoch else 0)
        given["steps_in_epoch"] = steps_for(rows, micro)
        given["num_update_steps_per_epoch"] = steps_for(given["steps_in_epoch"], self.args.gradient_accumulation_steps)
        super()._run_epoch(**given)  # type: ignore[no-untyped-call]

    def _over(self) -> str | None:
        """Tell why a resumed run is over before its first step: it was ended between its last save and done.json."""
        state = self.state
        if state.global_step >= state.max_steps:
            return f"step {state.global_step} of {state.max_steps} was saved"
        if self._saved is not None and self.parts.config.resume != "extend" and self._has_no_better():
            return f"step {state.global_step} was saved when early stopping ended the run"
        return None

    def _has_no_better(self) -> bool:
        """Tell whether early_stopping_patience is used up."""
        patience = self.parts.config.training.early_stopping_patience
        best, every = self.state.best_global_step, self._steps_between_evaluations()
        return patience is not None and best is not None and self.state.global_step - best >= patience * every

    def _steps_between_evaluations(self) -> int:
        if self.parts.config.training.eval_strategy == "steps":
            return int(self.args.eval_steps or 1)
        return steps_for(self._rows, self._width)

    def _true_epoch(self) -> float:
        """Return epochs done, in rows; the loop counts steps, which were of two widths in the epoch of a change."""
        place = self.parts.identity.course.at(self.state.global_step, self._rows, self._width)
        return place.epoch + place.row / self._rows
