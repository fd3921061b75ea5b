"""One micro-batch's share of a step's gradient, and the guards that refuse a broken loss or gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from qwen_job.errors import TrainingDiverged
from qwen_job.train.batches import Batch, empty_like
from qwen_job.train.guards import Suspect, diverged_message, source_of
from qwen_job.train.trainer_saving import SavingTrainer

# Steps in a row of which nothing is left to train: then it is not the rows.
_MOST_BROKEN = 3
# Steps in a row that fp16 leaves out while it halves its loss scale, which begins at 2 ** 16.
_MOST_RESCALED = 20


class GuardedTrainer(SavingTrainer):
    """A trainer that judges the step's mean loss before its last backward, and its gradients after."""

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add one micro-batch's share of the step's gradient: its summed loss over the step's tokens.

        DeepSpeed averages gradients over ranks, hence the factor of the world size.
        """
        model.train()
        self._moved("computing")
        loss = self._summed_loss(model, inputs)
        if self.parts.config.guards.on_nan == "skip":
            loss = self._replace_broken(model, inputs, loss)
        self._losses.append((inputs, loss.detach()))
        if self.accelerator.sync_gradients:
            self._judge()
        share = self.args.world_size / max(1, int(num_items_in_batch))
        self.accelerator.backward(loss * share, scale_wrt_gas=False)
        given: torch.Tensor = loss.detach() * share
        return given

    def _replace_broken(self, model: Any, batch: Batch, loss: torch.Tensor) -> torch.Tensor:
        """Train nothing in place of a micro-batch whose loss is not finite; all ranks alike for ZeRO-3."""
        broken = (~torch.isfinite(loss.detach())).to(torch.float32)
        anyone = broken.clone()
        dist.all_reduce(anyone)
        if anyone.item() == 0:
            return loss
        stand_in = self._summed_loss(model, empty_like(batch, self.parts.pad_id))
        self._skipped += int(anyone.item())
        self._spoiled += int(anyone.item())
        self._report_skip([batch] if broken.item() else [], self.state.global_step + 1, "the loss is not a number")
        return stand_in if broken.item() else loss

    def _report_skip(self, mine: list[Batch], step: int, reason: str) -> None:
        suspects = self._gather_suspects(mine)
        for suspect in suspects:
            self.parts.log.write(
                "guard", step, action="skip", rank=suspect.rank, rows=suspect.rows, skipped=self._skipped
            )
            self.parts.log.say(
                f"step {step}: {reason} on rank {suspect.rank}, rows {suspect.rows} "
                f"({suspect.sources}): left out ({self._skipped} so far)"
            )

    def _judge_update(self, grad_norm: Any) -> None:
        """Refuse, or count, a step whose gradients are not finite: after its update, before anything is saved.

        DeepSpeed leaves such an update out where it looks for it, in silence; fp16 does so to find its loss scale.
        """
        applied = bool(self._engine.was_step_applied())
        if applied and (grad_norm is None or math.isfinite(float(grad_norm))):
            self._unapplied = 0
            return
        self._unapplied += 0 if applied else 1
        if not applied and self.parts.config.precision == "fp16" and self._unapplied <= _MOST_RESCALED:
            return
        batches = [batch for batch, _ in self._losses]
        step, reason = self.state.global_step, "the gradients are not finite"
        if not applied and self.parts.config.guards.on_nan == "skip":
            self._skipped += 1
            if self._unapplied < _MOST_BROKEN:
                self._report_skip(batches, step, reason)
                return
            reason += f", {_MOST_BROKEN} steps in a row"
        self._refuse(step, reason, batches)

    def _judge_weights(self) -> None:
        """Refuse to save weights that are not numbers: a checkpoint must be worth going on from."""
        if not self._weights_are_finite():
            batches = [batch for batch, _ in self._losses]
            self._refuse(self.state.global_step, "the weights are not finite after the update", batches)

    def _weights_are_finite(self) -> bool:
        parts = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in self._engine.module.parameters()]
        largest = torch._foreach_norm([part for part in parts if part.numel()], float("inf"))
        finite = torch.stack([value.float() for value in largest]).isfinite().all().to(torch.int32)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite.item())

    def _refuse(self, step: int, reason: str, batches: list[Batch]) -> None:
        """Raise TrainingDiverged, on all ranks alike, once what was being saved is safe."""
        suspects = self._gather_suspects(batches)
        self.parts.log.write("guard", step, action="stop", reason=reason, rows=[s.rows for s in suspects])
        self._settle()
        raise TrainingDiverged(diverged_message(step, reason, suspects, self._last_saved(), self._sound))

    def _judge(self) -> None:
        """Agree on the step's mean loss before the last backward, and refuse a broken one."""
        total = torch.stack([loss for _, loss in self._losses]).double().sum()
        dist.all_reduce(total)
        self._step_loss = total.item() / max(1, self._totals.targets)
        reason = self._guard.judge(self._step_loss, self._totals.targets)
        if reason is None and self._guard.jumping:
            self._report_jump()
        if self._spoiled:
            nothing_left = self._spoiled == len(self._losses) * self.args.world_size
            self._broken = self._broken + 1 if nothing_left else 0
            if self._broken >= _MOST_BROKEN:
                reason = f"no row had a loss that is a number, {_MOST_BROKEN} steps in a row"
        else:
            self._broken = 0
        if reason is None and not (self._broken or self._guard.jumping):
            self._sound = self.state.global_step + 1
        if reason is not None:
            bad = [batch for batch, loss in self._losses if not torch.isfinite(loss)]
            self._refuse(self.state.global_step + 1, reason, bad or self._worst())

    def _report_jump(self) -> None:
        """Name the rows of a jump that may be theirs alone: nothing is saved until the next step has shown it."""
        step = self.state.global_step + 1
        suspects = self._gather_suspects(self._worst())
        self.parts.log.write("guard", step, action="watch", loss=self._step_loss, rows=[s.rows for s in suspects])
        named = "; ".join(f"rank {s.rank}, rows {s.rows} ({s.sources})" for s in suspects[:4])
        self.parts.log.say(
            f"step {step}: the loss jumped to {self._step_loss:.4g} from the usual {self._guard.usual:.4g} on {named}: "
            "the run ends if it stays there"
        )

    def _worst(self) -> list[Batch]:
        """Return this rank's micro-batch of the highest mean loss."""
        return [max(self._losses, key=lambda one: float(one[1]) / max(1, len(one[0]["chosen"])))[0]]

    def _gather_suspects(self, batches: list[Batch]) -> list[Suspect]:
        rows = [row for batch in batches for row in batch["rows"]]
        files = self.parts.config.data["train"]
        sources = [source_of(self.parts.train, row, files) for row in rows[:6]]
        mine = Suspect(self.args.process_index, rows, sources)
        everyone: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(everyone, mine)
        return [suspect for suspect in everyone if suspect.rows]
