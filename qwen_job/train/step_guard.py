"""Judges every step: its mean loss before the update, its gradients after the update, its weights before a save.

What is broken ends the run with a message that names rows and checkpoint, or is left out and counted (on_nan: skip).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from qwen_job.errors import TrainingDiverged
from qwen_job.run.config import TrainConfig
from qwen_job.train.batches import Batch
from qwen_job.train.guards import LossGuard, Suspect, diverged_message
from qwen_job.train.ranks import Ranks
from qwen_job.train.runlog import RunLog

# Steps in a row of which nothing is left to train: then it is not the rows.
_MOST_BROKEN = 3
# Steps in a row that fp16 leaves out while it halves its loss scale, which begins at 2 ** 16.
_MOST_RESCALED = 20


class Judged(NamedTuple):
    """A micro-batch and its summed loss."""

    batch: Batch
    loss: torch.Tensor


class StepGuard:
    """Watches the steps of one run; every method is called by all ranks alike.

    Args:
        source_of: names the user's rows behind a prepared one.
        settle: finishes the save under way and returns the step of the newest checkpoint.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        log: RunLog,
        *,
        source_of: Callable[[int], str],
        settle: Callable[[], int | None],
    ) -> None:
        self._skips = config.guards.on_nan == "skip"
        self._rescales = config.precision == "fp16"
        self._losses = LossGuard(config.guards.loss_spike_factor)
        self._ranks, self._log = ranks, log
        self._source_of, self._settle = source_of, settle
        self._step, self._targets = 0, 0
        self._judged: list[Judged] = []
        self._replaced = 0  # micro-batches of this step that were left out, on all ranks
        self.mean_loss = 0.0
        self.skipped = 0  # micro-batches and steps left out so far
        self.broken = 0  # steps in a row of which no row had a loss
        self.unapplied = 0  # steps in a row whose update DeepSpeed left out
        self.sound = 0  # the last step whose loss was finite and no jump

    @property
    def is_trained(self) -> bool:
        """Whether the last step changed the weights as it should: only then its checkpoint is worth resuming from."""
        return not (self.broken or self.unapplied)

    @property
    def is_jumping(self) -> bool:
        """Whether the loss is far above the usual, for too few steps yet to end the run."""
        return bool(self._losses.jumping)

    def begin(self, step: int, targets: int) -> None:
        """Begin ``step``, whose micro-batches on all ranks have ``targets`` trained tokens."""
        self._step, self._targets = step, targets
        self._judged, self._replaced = [], 0

    def take(self, batch: Batch, loss: torch.Tensor, stand_in: Callable[[bool], torch.Tensor]) -> torch.Tensor:
        """Note a micro-batch's summed loss and return the loss to train on.

        With on_nan: skip that is ``stand_in(broken)`` on all ranks once it is not finite on one: a loss of nothing
        where it is ``broken``. All ranks compute it, since they gather weights or exchange tokens on the way.
        """
        if self._skips:
            loss = self._replace_broken(batch, loss, stand_in)
        self._judged.append(Judged(batch, loss.detach()))
        return loss

    def _replace_broken(
        self, batch: Batch, loss: torch.Tensor, stand_in: Callable[[bool], torch.Tensor]
    ) -> torch.Tensor:
        ranks = self._ranks
        verdicts = ranks.gather_numbers([int(not torch.isfinite(loss.detach()))])
        # A group computes its row together: all of it is left out, whichever slice is broken.
        broken = verdicts.view(ranks.groups, -1).any(1)
        if not broken.any():
            return loss
        mine = bool(broken[ranks.group])
        replacement = stand_in(mine)
        self.skipped += int(broken.sum())
        self._replaced += int(broken.sum())
        self._report_skip([batch] if mine else [], "the loss is not finite")
        return replacement

    def judge_loss(self) -> None:
        """Agree on the step's mean loss, before its update.

        Raises:
            TrainingDiverged: it is not finite, has jumped and stayed there, or nothing was left to train on.
        """
        total = self._ranks.sum(torch.stack([loss for _, loss in self._judged]).double().sum())
        self.mean_loss = total.item() / max(1, self._targets)
        reason = self._losses.judge(self.mean_loss, self._targets)
        if reason is None and self.is_jumping:
            self._report_jump()
        nothing_left = self._replaced == len(self._judged) * self._ranks.groups
        self.broken = self.broken + 1 if self._replaced and nothing_left else 0
        if self.broken >= _MOST_BROKEN:
            reason = f"no row had a finite loss, {_MOST_BROKEN} steps in a row"
        if reason is not None:
            bad = [batch for batch, loss in self._judged if not torch.isfinite(loss)]
            self._refuse(reason, bad or self._worst())
        if not (self.broken or self.is_jumping):
            self.sound = self._step

    def judge_update(self, *, applied: bool, gradient_norm: float | None) -> None:
        """Refuse, or count, a step whose gradients are not finite: after its update, before anything is saved.

        DeepSpeed leaves such an update out where it looks for it, silently; fp16 does so to find its loss scale.

        Raises:
            TrainingDiverged: the gradients are not finite.
        """
        if applied and (gradient_norm is None or math.isfinite(gradient_norm)):
            self.unapplied = 0
            return
        self.unapplied += 0 if applied else 1
        if not applied and self._rescales and self.unapplied <= _MOST_RESCALED:
            return
        batches = [batch for batch, _ in self._judged]
        reason = "the gradients are not finite"
        if not applied and self._skips:
            self.skipped += 1
            if self.unapplied < _MOST_BROKEN:
                self._report_skip(batches, reason)
                return
            reason += f", {_MOST_BROKEN} steps in a row"
        self._refuse(reason, batches)

    def judge_weights(self, *, finite: bool) -> None:
        """Refuse to save weights that are not finite: a checkpoint must be worth resuming from.

        Raises:
            TrainingDiverged: they are not.
        """
        if not finite:
            self._refuse("the weights are not finite after the update", [batch for batch, _ in self._judged])

    def _refuse(self, reason: str, batches: list[Batch]) -> None:
        """Raise TrainingDiverged, on all ranks alike, once what was being saved is safe."""
        suspects = self._gather(batches)
        self._log.write("guard", self._step, action="stop", reason=reason, rows=[s.rows for s in suspects])
        raise TrainingDiverged(diverged_message(self._step, reason, suspects, self._settle(), self.sound))

    def _report_skip(self, mine: list[Batch], reason: str) -> None:
        for suspect in self._gather(mine):
            self._log.write(
                "guard", self._step, action="skip", rank=suspect.rank, rows=suspect.rows, skipped=self.skipped
            )
            self._log.say(
                f"step {self._step}: {reason} on rank {suspect.rank}, rows {suspect.rows} "
                f"({suspect.sources}): skipped ({self.skipped} so far)"
            )

    def _report_jump(self) -> None:
        """Name the rows of a jump that may be theirs alone: nothing is saved until the next step has shown it."""
        suspects = self._gather(self._worst())
        self._log.write("guard", self._step, action="watch", loss=self.mean_loss, rows=[s.rows for s in suspects])
        named = "; ".join(f"rank {s.rank}, rows {s.rows} ({s.sources})" for s in suspects[:4])
        self._log.say(
            f"step {self._step}: the loss jumped to {self.mean_loss:.4g} from the usual {self._losses.usual:.4g} on "
            f"{named}: the run ends if it stays there"
        )

    def _worst(self) -> list[Batch]:
        """Return this rank's micro-batch of the highest mean loss."""
        return [max(self._judged, key=lambda one: float(one.loss) / max(1, len(one.batch["chosen"]))).batch]

    def _gather(self, batches: list[Batch]) -> list[Suspect]:
        rows = [row for batch in batches for row in batch["rows"]]
        mine = Suspect(self._ranks.rank, rows, [self._source_of(row) for row in rows[:6]])
        found = [suspect for suspect in self._ranks.gather(mine) if suspect.rows]
        # Ranks that share rows name the same ones.
        return list({tuple(suspect.rows): suspect for suspect in reversed(found)}.values())[::-1]
