"""python -m qwen_job.train with one thing changed for a test, named by the variable DOCTOR.

gradients  write the first step's full gradients to $GRADIENTS and stop
nan        make the loss of prepared row 3 a NaN
slopes     make the gradients of step $SPOIL, or of all, NaN, and leave the loss as it is
weights    make the weights NaN after the update of step $SPOIL
stop       wish to stop after step $STOP_AT
background write checkpoints in the background, as on GPUs
oom        run out of the GPU's memory in the third step
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from qwen_job.train import __main__ as train


def record_gradients() -> None:
    """Replace the engine's first step by a dump of what it would have used."""
    from deepspeed import DeepSpeedEngine
    from deepspeed.utils import safe_get_full_grad

    def step(engine: Any) -> None:
        gradients = {name: safe_get_full_grad(p).clone() for name, p in engine.module.named_parameters()}
        if os.environ["RANK"] == "0":
            torch.save(gradients, os.environ["GRADIENTS"])
        torch.distributed.barrier()
        os._exit(0)

    DeepSpeedEngine.step = step


def spoil_a_row() -> None:
    """Give row 3 a loss that is not a number."""
    from qwen_job.train.trainer import JobTrainer

    summed = JobTrainer._summed_loss

    def spoiled(self: Any, model: Any, batch: Any) -> torch.Tensor:
        loss = summed(self, model, batch)
        return loss * float("nan") if 3 in batch["rows"] else loss

    JobTrainer._summed_loss = spoiled  # type: ignore[method-assign]


class _Spoil(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
        return slopes[0] * float("nan")


def spoil_gradients() -> None:
    """Give a step, or all, gradients that are not numbers."""
    from qwen_job.train.trainer import JobTrainer

    summed, chosen = JobTrainer._summed_loss, os.environ["SPOIL"]

    def spoiled(self: Any, model: Any, batch: Any) -> torch.Tensor:
        loss = summed(self, model, batch)
        return _Spoil.apply(loss) if chosen in ("all", str(self.state.global_step + 1)) else loss

    JobTrainer._summed_loss = spoiled  # type: ignore[method-assign]


def spoil_weights() -> None:
    """Break the weights after an update whose loss and gradients are numbers."""
    from qwen_job.train.trainer import JobTrainer

    record = JobTrainer._record

    def spoiled(self: Any, *arguments: Any) -> None:
        record(self, *arguments)
        if str(self.state.global_step) == os.environ["SPOIL"]:
            next(self._engine.module.parameters()).data.fill_(float("nan"))

    JobTrainer._record = spoiled  # type: ignore[method-assign]


def stop_after() -> None:
    """Hear a wish to stop in the step that is to be the last."""
    from qwen_job.train.trainer import JobTrainer

    fetch = JobTrainer.get_batch_samples

    def fetched(self: Any, *arguments: Any) -> Any:
        if self.state.global_step + 1 == int(os.environ["STOP_AT"]):
            self.parts.wish.reason = "the test"
        return fetch(self, *arguments)

    JobTrainer.get_batch_samples = fetched  # type: ignore[method-assign]


def save_in_background() -> None:
    """Copy the state aside and let a thread write it."""
    from qwen_job.train import setup

    setup._has_room_aside = lambda *_: True


def run_out_of_memory() -> None:
    """Raise what the allocator of a GPU raises."""
    from qwen_job.train.trainer import JobTrainer

    step = JobTrainer.training_step

    def full(self: Any, *arguments: Any) -> torch.Tensor:
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return step(self, *arguments)

    JobTrainer.training_step = full  # type: ignore[method-assign]


if __name__ == "__main__":
    from qwen_job.train.rendezvous import quiet_deepspeed

    quiet_deepspeed("cpu")
    {
        "gradients": record_gradients,
        "nan": spoil_a_row,
        "slopes": spoil_gradients,
        "weights": spoil_weights,
        "stop": stop_after,
        "background": save_in_background,
        "oom": run_out_of_memory,
    }[os.environ["DOCTOR"]]()
    os._exit(train.main(sys.argv[1:]))
