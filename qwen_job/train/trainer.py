"""The training loop, on a DeepSpeed engine: read ``Trainer.train`` and ``Trainer._step`` from top to bottom.

One step: fetch its micro-batches, agree on what all ranks must know, forward and backward, update, record. At its
boundary: evaluate, save, stop. Everything with its own state is a member, built in setup.py.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from qwen_job.errors import StoppedAndSaved
from qwen_job.run.config import TrainConfig
from qwen_job.run.signals import StopRequest
from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.arguments import Arguments
from qwen_job.train.batches import Batch, Loader
from qwen_job.train.course import Course, Track
from qwen_job.train.deepspeed_engine import Engine
from qwen_job.train.flops import Shape, StepTotals, step_flops, utilisation
from qwen_job.train.gradient_step import GradientStep
from qwen_job.train.intervals import Due, Intervals
from qwen_job.train.ranks import Ranks
from qwen_job.train.rate_schedule import Schedule
from qwen_job.train.reporters import Reporters
from qwen_job.train.run_state import RunState
from qwen_job.train.runlog import RunLog
from qwen_job.train.saver import Saver
from qwen_job.train.step_guard import StepGuard
from qwen_job.train.straggler import OwnTime, Stragglers
from qwen_job.train.watchdog import Watchdog


class Parts(NamedTuple):
    """What a trainer is made of."""

    config: TrainConfig
    arguments: Arguments
    ranks: Ranks
    engine: Engine
    gradients: GradientStep
    shape: Shape
    train_rows: Loader
    held_out_rows: Callable[[], Loader]
    track: Track
    state: RunState
    schedule: Schedule
    intervals: Intervals
    guard: StepGuard
    saver: Saver
    reporters: Reporters
    log: RunLog
    stop_request: StopRequest
    watchdog: Watchdog
    restore_random_state: Callable[[], None]
    resumed: bool
    own_time: OwnTime


class Trainer:
    """Trains one run to its end; ``engine`` and ``state`` hold the result."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config, self.engine, self.state = parts.config, parts.engine, parts.state
        self.ranks, self.guard, self.saver, self.log = parts.ranks, parts.guard, parts.saver, parts.log
        self.eval_loss: float | None = None
        self._stop: str | None = None  # why the run is to save and leave at this step
        self._ending = False
        self._totals = StepTotals(0, 0, 0, 0)
        self._clock = self._seconds = 0.0
        self._copied = False
        self._stragglers = Stragglers(parts.ranks.world_size)

    def train(self) -> None:
        """Train to the end of the run.

        Raises:
            StoppedAndSaved: the run was asked to stop, and has saved.
            TrainingDiverged: a loss, a gradient or a weight is not finite.
            EnvironmentFault: a checkpoint could not be written.
        """
        parts, state = self.parts, self.state
        parts.reporters.begin()
        if parts.arguments.eval_on_start:
            self.evaluate()
        parts.restore_random_state()
        began = state.global_step
        if reason := self._over():
            self.log.say(f"{reason}: nothing is left to train")
            self._ending = True
            if began and began != self.saver.last:
                self._save()  # it was in memory only
        while not self._ending:
            self._epoch(parts.track.at(state.global_step))
        parts.reporters.end(state.global_step, state.epoch, state.global_step - began)

    def _epoch(self, place: Course) -> None:
        """Train the rest of an epoch from ``place``, or less where the run ends within it."""
        track, state = self.parts.track, self.state
        self.parts.train_rows.begin_at(place.epoch, place.row)
        rows = iter(self.parts.train_rows)
        epoch = place.epoch
        while place.epoch == epoch and not self._ending:
            self._step(rows, track.micro_batches(place))
            self._ending = state.global_step >= state.max_steps
            self._boundary(self.parts.intervals.after_step(state.global_step))
            place = track.at(state.global_step)
            if place.epoch == epoch:
                self._remember()
        self._boundary(self.parts.intervals.after_epoch(state.epoch))
        # An evaluation of the epoch belongs to its last step.
        self._remember()

    def _step(self, rows: Iterator[Batch], micro_batches: int) -> None:
        """Take one optimizer step: its gradient is that of the mean loss over the step's tokens on all ranks."""
        parts, engine, guard = self.parts, self.engine, self.guard
        step = self.state.global_step + 1
        parts.stop_request.hold()
        self._clock = self._clock or time.monotonic()

        parts.watchdog.moved(step, "fetching")
        batches = parts.own_time.of(lambda: [next(rows) for _ in range(micro_batches)])
        self._totals = self._agree(batches)

        engine.train()
        guard.begin(step, self._totals.targets)
        parts.gradients.compute(batches, self._totals, guard.take, partial(parts.watchdog.moved, step))
        guard.judge_loss()  # waits for the GPU, as does the norm in step(): nothing else in a step does
        engine.step()

        gradient_norm, rate = engines.gradient_norm_of(engine), parts.schedule.rate
        if not engines.was_skipped(engine):
            parts.schedule.step()
        self.state.global_step = step
        self.state.epoch = parts.track.epochs_done(step)
        self._record(gradient_norm, rate)
        guard.judge_update(applied=bool(engine.was_step_applied()), gradient_norm=gradient_norm)
        self.saver.reserve_room()
        self._empty_cache()

    def _agree(self, batches: list[Batch]) -> StepTotals:
        """Exchange in a single collective what the ranks must agree on before a step; returns its sums."""
        stop_request = self.parts.stop_request
        stop = stop_request.heard(self.config.plan.step_seconds or 0.0)
        counted = batches if self.ranks.counts_rows else []
        mine = [
            sum(len(batch["chosen"]) for batch in counted),
            sum(batch["tokens"] for batch in counted),
            sum(batch["pairs"] for batch in counted),
            int(stop),
            int(self.saver.checkpointer.written),
            self._memory(),
            int(self.saver.memory is None or self.saver.memory.copied),
            self.parts.own_time.take(),
        ]
        everyone = self.ranks.gather_numbers(mine)
        targets, tokens, pairs, stops = (int(number) for number in everyone.sum(0)[:4])
        if stops:
            self._stop = stop_request.reason or "another rank was asked to stop"
        written = int(everyone[:, 4].min()) == 1
        if written and self.saver.checkpointer.under_way is not None:
            self.parts.watchdog.moved(self.state.global_step + 1, "saving")
        self.saver.finish_if(written=written)
        self._copied = int(everyone[:, 6].min()) == 1
        self._compare([microseconds / 1e6 for microseconds in everyone[:, 7].tolist()])
        return StepTotals(targets, tokens, pairs, int(everyone[:, 5].max()))

    def _compare(self, own_seconds: list[float]) -> None:
        """Name the ranks that are slow by themselves for long, on rank 0."""
        if not self.log.active:
            return
        for slow in self._stragglers.note(own_seconds, self._seconds):
            host, step = self.parts.watchdog.host_of(slow.rank), self.state.global_step
            self.log.straggler(step, host, slow)

    def _boundary(self, due: Due) -> None:
        """Evaluate and save what is due after a step or an epoch, and leave if the run was asked to."""
        state, save = self.state, due.save
        if due.evaluate:
            loss = self.evaluate()
            self.parts.schedule.follow(loss)
            is_best = state.note_held_out(loss, saves=self.parts.intervals.saves)
            save = save or (is_best and self.config.training.load_best_model_at_end)
            if self.parts.intervals.is_out_of_patience(state.global_step, state.best_global_step):
                self.log.say(f"no better held-out loss since step {state.best_global_step}: stopping early")
                self._ending = save = True
        doubtful = self.guard.is_jumping and state.global_step < state.max_steps
        wanted = save and self.guard.is_trained and not doubtful
        if (wanted or self._stop) and state.global_step != self.saver.last:
            self._save()
        if self._stop and not self._ending:
            self.saver.settle()
            raise StoppedAndSaved(
                f"{self._stop}: saved at step {state.global_step} of {state.max_steps}; "
                "run the same job again to resume"
            )

    def _save(self) -> None:
        self.guard.judge_weights(finite=engines.weights_are_finite(self.engine, self.ranks))
        self.parts.watchdog.moved(self.state.global_step + 1, "saving")
        self.saver.save(wait=self._ending or self._stop is not None)
        self._clock = time.monotonic()

    def _remember(self) -> None:
        """Keep the state in memory if it is due and worth keeping."""
        due = self.saver.wants_to_remember(self._seconds, copied=self._copied)
        if not due or self._ending or self._stop or self.guard.is_jumping or not self.guard.is_trained:
            return
        self.guard.judge_weights(finite=engines.weights_are_finite(self.engine, self.ranks))
        self.parts.watchdog.moved(self.state.global_step + 1, "saving")
        self.saver.remember()
        self._clock = time.monotonic()

    def evaluate(self) -> float:
        """Return the mean loss per trained token of the held-out rows; the same on any number of ranks."""
        self.engine.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.ranks.device)
        with torch.no_grad():
            for batch in self.parts.held_out_rows():
                self.parts.watchdog.moved(self.state.global_step + 1, "evaluating")
                sums[0] += self.parts.gradients.plain_loss(batch).double()
                sums[1] += len(batch["chosen"]) if self.ranks.counts_rows else 0
        self.ranks.sum(sums)
        self.eval_loss = loss = (sums[0] / sums[1].clamp(min=1)).item()
        perplexity, step = math.exp(min(loss, 700.0)), self.state.global_step
        self.log.write("eval", step, loss=loss, perplexity=perplexity)
        self.log.say(f"step {step}: held-out loss {loss:.4f}, perplexity {perplexity:.4g}")
        self.parts.reporters.log(step, self.state.epoch, {"eval_loss": loss, "eval_perplexity": perplexity})
        self._clock = time.monotonic()
        return loss

    def take_best_weights(self) -> None:
        """Finish what is being saved, then load the best checkpoint's weights if train.yaml asks for them."""
        if self.saver.restore_best():
            self.eval_loss = self.state.best_metric

    def _over(self) -> str | None:
        """Tell why a resumed run is over before its first step: it ended between its last save and done.json."""
        state = self.state
        if state.global_step >= state.max_steps:
            return f"step {state.global_step} of {state.max_steps} was saved"
        resumed = self.parts.resumed and self.config.resume != "extend"
        if resumed and self.parts.intervals.is_out_of_patience(state.global_step, state.best_global_step):
            return f"step {state.global_step} was saved when early stopping ended the run"
        return None

    def _record(self, gradient_norm: float | None, learning_rate: float) -> None:
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        self._seconds = seconds
        state, totals = self.state, self._totals
        flops = step_flops(self.parts.shape, totals)
        values = {
            "epoch": state.epoch,
            "loss": self.guard.mean_loss,
            "learning_rate": learning_rate,
            "grad_norm": gradient_norm,
            "tokens": totals.tokens,
            "tokens_per_second": totals.tokens / seconds,
            "step_seconds": seconds,
            "mfu": utilisation(flops, seconds, self.config.peak_tflops, self.ranks.world_size),
            "memory_bytes": totals.memory,
        }
        if (routing := self.parts.gradients.routing) is not None:
            values |= routing.statistics()._asdict()
        self.log.step(state.global_step, values)
        if self.parts.intervals.reports(state.global_step):
            known = {name: value for name, value in values.items() if value is not None}
            self.parts.reporters.log(state.global_step, state.epoch, known)

    def _memory(self) -> int:
        if self.ranks.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _empty_cache(self) -> None:
        every = self.parts.arguments.torch_empty_cache_steps
        if every and self.state.global_step % every == 0:
            torch.cuda.empty_cache()
