"""One micro-batch's share of a step's gradient, and the guard that refuses a broken loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qwen_job.errors import TrainingDiverged
from qwen_job.train.batches import Batch, empty_like
from qwen_job.train.guards import Suspect, diverged_message
from qwen_job.train.trainer_saving import SavingTrainer


class GuardedTrainer(SavingTrainer):
    """A trainer that judges the step's mean loss before its last backward."""

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
        self._report_skip(batch, bool(broken.item()))
        return stand_in if broken.item() else loss

    def _report_skip(self, batch: Batch, broken: bool) -> None:
        suspects = self._gather_suspects([batch] if broken else [])
        step = self.state.global_step + 1
        for suspect in suspects:
            self.parts.log.write(
                "guard", step, action="skip", rank=suspect.rank, rows=suspect.rows, skipped=self._skipped
            )
            self.parts.log.say(
                f"step {step}: the loss is not a number on rank {suspect.rank}, rows {suspect.rows} "
                f"({suspect.sources}): left out ({self._skipped} so far)"
            )

    def _judge(self) -> None:
        """Agree on the step's mean loss before the last backward, and refuse a broken one."""
        total = torch.stack([loss for _, loss in self._losses]).double().sum()
        dist.all_reduce(total)
        self._step_loss = total.item() / max(1, self._totals.targets)
        reason = self._guard.judge(self._step_loss)
        if reason is None:
            return
        bad = [batch for batch, loss in self._losses if not torch.isfinite(loss)]
        suspects = self._gather_suspects(bad or [batch for batch, _ in self._losses])
        step = self.state.global_step + 1
        self.parts.log.write("guard", step, action="stop", reason=reason, rows=[s.rows for s in suspects])
        self._settle()
        raise TrainingDiverged(diverged_message(step, reason, suspects, self._last_saved()))

    def _gather_suspects(self, batches: list[Batch]) -> list[Suspect]:
        rows = [row for batch in batches for row in batch["rows"]]
        files = self.parts.config.data["train"]
        sources = [_source(self.parts.train, row, files) for row in rows[:6]]
        mine = Suspect(self.args.process_index, rows, sources)
        everyone: list[Any] = [None] * self.args.world_size
        dist.all_gather_object(everyone, mine)
        return [suspect for suspect in everyone if suspect.rows]


def _source(rows: Any, row: int, files: list[dict[str, Any]]) -> str:
    """Name the user's rows that were packed into a prepared one: file:row, file:row."""
    members = rows[row].source_rows[:4]
    return ", ".join(f"{Path(files[file]['path']).name}:{number}" for file, number in members)
