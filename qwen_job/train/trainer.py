"""Hugging Face's Trainer with our steps: its loop, optimizer wiring and integrations; our batches, loss,
checkpoints and figures.

One optimizer step, in the Trainer's order:
  get_batch_samples             fetch the step's micro-batches; ranks exchange token counts and stop wishes
  training_step (each micro)    summed loss over the tokens of the whole step; the guard before the last backward
  _maybe_log_save_evaluate      the step boundary: figures, evaluation, checkpoint, stop
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from qwen_job.errors import StoppedAndSaved
from qwen_job.train.flops import StepTotals, step_flops, utilisation
from qwen_job.train.trainer_loss import GuardedTrainer


class JobTrainer(GuardedTrainer):
    """One run. Raises StoppedAndSaved, TrainingDiverged or EnvironmentFault out of ``train``."""

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Fetch one step and exchange in a single collective what the ranks must agree on."""
        self.parts.wish.hold()
        self._clock = self._clock or time.monotonic()
        self._moved("fetching")
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        step_seconds = self.parts.config.plan.step_seconds or 0.0
        stop = self.parts.wish.heard(step_seconds)
        mine = [
            sum(len(batch["chosen"]) for batch in batches),
            sum(batch["tokens"] for batch in batches),
            sum(batch["pairs"] for batch in batches),
            int(stop),
            int(self.parts.checkpointer.written),
            self._memory(),
        ]
        everyone = self._exchange(mine)
        sums = everyone.sum(0)
        self._totals = StepTotals(int(sums[0]), int(sums[1]), int(sums[2]), int(everyone[:, 5].max()))
        if sums[3] > 0:
            self._stop = self.parts.wish.reason or "another rank was asked to stop"
        if self.parts.checkpointer.under_way is not None and int(everyone[:, 4].min()) == 1:
            self._finish_save()
        self._losses, self._step_loss, self._spoiled = [], 0.0, 0
        return batches, self._totals.targets

    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        tr_loss.zero_()
        if self.state.global_step > self._boundary:
            self._boundary = self.state.global_step
            if self.parts.identity.course.row:
                self.state.epoch = self._true_epoch()
            self._record(grad_norm, learning_rate)
            self._judge_update(grad_norm)
            self._reserve_room()
            self._empty_cache()
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys_for_eval)
            if self._determine_best_metric(metrics=metrics, trial=trial) and self._wants_best():
                self.control.should_save = True
            self._stop_early()
        doubtful = self._guard.jumping and self.state.global_step < self.state.max_steps
        trained = not (self._broken or self._unapplied or doubtful)
        if ((self.control.should_save and trained) or self._stop) and self.state.global_step != self._last_saved():
            self._judge_weights()
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self._stop and not self.control.should_training_stop:
            self._settle()
            raise StoppedAndSaved(
                f"{self._stop}: saved at step {self.state.global_step} of {self.state.max_steps}; "
                "running the same job again goes on from there"
            )

    def _record(self, grad_norm: Any, learning_rate: float | None) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        flops = step_flops(self.parts.shape, self._totals)
        values = {
            "epoch": self.state.epoch,
            "loss": self._step_loss,
            "learning_rate": learning_rate,
            "grad_norm": None if grad_norm is None else float(grad_norm),
            "tokens": self._totals.tokens,
            "tokens_per_second": self._totals.tokens / seconds,
            "step_seconds": seconds,
            "mfu": utilisation(flops, seconds, self.parts.config.peak_tflops, self.args.world_size),
            "memory_bytes": self._totals.memory,
        }
        self.parts.log.step(self.state.global_step, values)
        first = self.state.global_step == 1 and self.args.logging_first_step
        if first or self.state.global_step % self.parts.config.training.logging_steps == 0:
            self._report({key: value for key, value in values.items() if value is not None})

    def _empty_cache(self) -> None:
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0:
            torch.cuda.empty_cache()

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss per trained token of the held-out rows; the same on any number of ranks."""
        self.model_wrapped.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for batch in self._loader(self.parts.eval, self.args.per_device_eval_batch_size, 1, None):
                self._moved("evaluating")
                sums[0] += self._summed_loss(self.model_wrapped, batch).double()
                sums[1] += len(batch["chosen"])
        dist.all_reduce(sums)
        loss = (sums[0] / sums[1].clamp(min=1)).item()
        self.eval_loss = loss
        perplexity = math.exp(min(loss, 700.0))
        self.parts.log.write("eval", self.state.global_step, loss=loss, perplexity=perplexity)
        self.parts.log.say(f"step {self.state.global_step}: held-out loss {loss:.4f}, perplexity {perplexity:.4g}")
        metrics = {"eval_loss": loss, "eval_perplexity": perplexity}
        self._report(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._clock = time.monotonic()
        return metrics

    def _stop_early(self) -> None:
        if self._has_no_better():
            self.parts.log.say(f"no better held-out loss since step {self.state.best_global_step}: stopping early")
            self.control.should_training_stop = True
            self.control.should_save = True
