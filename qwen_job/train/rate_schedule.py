"""The learning rate: a schedule of transformers, stepped by the trainer.

- ``Schedule``: the rate of every step; its state is a checkpoint's scheduler.pt
- ``check_schedule``: tries the curve before the first step
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers.optimization import GreedyLR, get_scheduler

from qwen_job.errors import JobError, Problem
from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import SCHEDULE, TRAIN
from qwen_job.train.arguments import Arguments, warmup_steps


class Schedule:
    """The learning rate of a run of ``total`` steps, written into the parameter groups of ``optimizer``."""

    def __init__(self, config: TrainConfig, arguments: Arguments, optimizer: torch.optim.Optimizer, total: int) -> None:
        training = config.training
        self._kind, self._base, self._total = training.lr_scheduler_type, training.learning_rate, total
        self._optimizer = optimizer
        self._curve = _build(config, arguments, optimizer, total)
        self._follows_loss = isinstance(self._curve, (torch.optim.lr_scheduler.ReduceLROnPlateau, GreedyLR))

    @property
    def rate(self) -> float:
        """The learning rate of the step under way."""
        return float(self._curve.get_last_lr()[0])

    def step(self) -> None:
        """Move on by one step. Not called where the update was left out, so that warmup loses none of its steps."""
        if not self._follows_loss:
            self._curve.step()

    def follow(self, loss: float) -> None:
        """Give a held-out loss to a schedule that lowers the rate by it; nothing to the others."""
        if self._follows_loss:
            self._curve.step(loss)

    def state(self) -> dict[str, object]:
        """Return the content of scheduler.pt."""
        state: dict[str, Any] = self._curve.state_dict()
        return state

    def load(self, checkpoint: Path) -> None:
        """Continue where ``checkpoint`` was saved; its optimizer may have had another number of groups, all alike."""
        state, groups = torch.load(checkpoint / SCHEDULE, weights_only=True), len(self._optimizer.param_groups)
        state |= {name: value[:1] * groups for name, value in state.items() if isinstance(value, list)}
        self._curve.load_state_dict(state)

    def renew(self, next_step: int) -> str | None:
        """Apply train.yaml's learning rate and length after a checkpoint of other settings; returns what changed."""
        if not hasattr(self._curve, "lr_lambdas"):
            return None
        groups = self._optimizer.param_groups
        now = [self._base * curve(self._curve.last_epoch) for curve in self._curve.lr_lambdas]
        if all(base == self._base for base in self._curve.base_lrs) and [group["lr"] for group in groups] == now:
            return None
        before = groups[0]["lr"]
        self._curve.base_lrs = [self._base] * len(self._curve.base_lrs)
        self._curve._last_lr = now
        for group, value in zip(groups, now, strict=True):
            group["initial_lr"], group["lr"] = self._base, value
        return (
            f"learning rate: {before:.4g} -> {now[0]:.4g} at step {next_step}, "
            f"by the {self._kind} schedule of {self._total} steps"
        )


def check_schedule(config: TrainConfig, arguments: Arguments, total_steps: int) -> None:
    """Try the schedule's curve over all steps of the run, before the first one is computed.

    Raises:
        JobError: it fails at some step, or its phases do not fit ``total_steps``.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.training.learning_rate)
    warmup, kwargs = warmup_steps(config, arguments, total_steps), arguments.lr_scheduler_kwargs
    kind = config.training.lr_scheduler_type
    later = int(kwargs.get("num_stable_steps", 0)) + int(kwargs.get("num_decay_steps", 0))
    try:
        if warmup + later > total_steps and kind == "warmup_stable_decay":
            raise ValueError(f"{warmup} steps of warmup and {later} after it are more than the run's {total_steps}")
        curves = getattr(_build(config, arguments, optimizer, total_steps), "lr_lambdas", [])
        for curve in curves:
            for step in {*range(min(total_steps, 1000) + 1), warmup, warmup + 1, total_steps - 1, total_steps}:
                if not math.isfinite(curve(step)):
                    raise ValueError(f"the learning rate of step {step} is not finite")
    except (ValueError, TypeError, ArithmeticError) as error:
        text = f"{kind} does not work with {total_steps} steps and {warmup} of warmup: {' '.join(str(error).split())}"
        raise JobError([Problem(TRAIN, 0, 0, "training.lr_scheduler_type", text)]) from None


def _build(config: TrainConfig, arguments: Arguments, optimizer: torch.optim.Optimizer, total: int) -> Any:
    return get_scheduler(
        config.training.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=warmup_steps(config, arguments, total),
        num_training_steps=total,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs),
    )
