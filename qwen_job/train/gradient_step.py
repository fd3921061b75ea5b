"""The gradient of one optimizer step: forward and backward of its micro-batches.

It is that of the mean loss over the step's trained tokens on all ranks, and of the loss that balances experts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from qwen_job.train import deepspeed_engine as engines
from qwen_job.train.batches import Batch, empty_like, on_device
from qwen_job.train.deepspeed_engine import Engine
from qwen_job.train.experts import Routing, Seen
from qwen_job.train.flops import StepTotals
from qwen_job.train.loss import Objective
from qwen_job.train.ranks import Ranks
from qwen_job.train.sequence_parallel import slice_of
from qwen_job.train.straggler import OwnTime


class Judge(Protocol):
    """What looks at every micro-batch's summed loss and may replace it: see ``StepGuard.take``."""

    def __call__(
        self, batch: Batch, loss: torch.Tensor, stand_in: Callable[[bool], torch.Tensor], /
    ) -> torch.Tensor: ...


class GradientStep:
    """Computes gradients on ``engine``.

    ``routing`` is of a mixture of experts, None for a dense model; ``own_time`` counts this rank's forward passes.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        routing: Routing | None,
        ranks: Ranks,
        pad_id: int,
        own_time: OwnTime,
    ) -> None:
        self.engine, self.objective, self.routing = engine, objective, routing
        self._ranks, self._pad_id = ranks, pad_id
        self._own_time = own_time
        self._seen: Seen | None = None  # what routers did in the last forward pass of the step

    def compute(self, batches: list[Batch], totals: StepTotals, judge: Judge, moved: Callable[[str], None]) -> None:
        """Add up the gradient of ``batches``, this rank's part of a step. A collective of all ranks.

        ``moved`` is called whenever something new begins.
        """
        engine = self.engine
        if self.routing is not None:
            moved("routing")
            self.routing.begin(totals.tokens)
            self.routing.count(batches, self.plain_loss)
        ranks = self._ranks.world_size if engines.averages_gradients(engine) else 1
        share = ranks / max(1, totals.targets)
        for number, batch in enumerate(batches, 1):
            moved("computing")
            found = self._own_time.of_forward(partial(self._loss, batch))
            seen = self._seen
            loss = judge(batch, found, partial(self._stand_in, batch))
            total = self._balanced(loss * share, seen if loss is found else self._seen, ranks)
            engine.set_gradient_accumulation_boundary(number == len(batches))
            engine.backward(total, scale_wrt_gas=False)

    def plain_loss(self, batch: Batch) -> torch.Tensor:
        """Return the summed loss of a micro-batch, held out or not: of this rank's slice where ranks share rows."""
        return self.objective(self.engine, on_device(slice_of(batch, self._ranks), self._ranks.device))

    def _loss(self, batch: Batch) -> torch.Tensor:
        if self.routing is None:
            return self.plain_loss(batch)
        loss, self._seen = self.routing.watch(batch, partial(self.plain_loss, batch))
        return loss

    def _stand_in(self, batch: Batch, broken: bool) -> torch.Tensor:
        """Return a loss without the broken micro-batches: that of nothing, or of ``batch`` where another rank's is.

        It is computed again there: ranks that exchange tokens also exchange their gradients, of the same forward pass.
        """
        return self._loss(empty_like(batch, self._pad_id) if broken else batch)

    def _balanced(self, loss: torch.Tensor, seen: Seen | None, ranks: int) -> torch.Tensor:
        """Return ``loss`` with what the balance of experts adds to it, where there are any."""
        if self.routing is None or seen is None:
            return loss
        aux = self.routing.take(seen)
        return loss if aux is None else loss + aux * ranks
