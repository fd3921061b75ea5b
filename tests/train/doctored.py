"""python -m tests.train.doctored CHANGE [VALUE] -- ARGUMENTS: python -m qwen_job.train with one thing changed.

Every change is made to the trainer that setup.py has built, right before it trains; see ``CHANGES``.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwen_job.train import __main__ as main
from qwen_job.train import straggler

if TYPE_CHECKING:
    from qwen_job.train.batches import Batch
    from qwen_job.train.trainer import Trainer


def record_gradients(trainer: Trainer, path: str) -> None:
    """Write the first step's full gradients to a file, in place of the step, and leave."""
    from deepspeed.utils import safe_get_full_grad

    def step() -> None:
        gradients = {name: safe_get_full_grad(p).clone() for name, p in trainer.engine.module.named_parameters()}
        if trainer.ranks.rank == 0:
            torch.save(gradients, path)
        torch.distributed.barrier()
        os._exit(0)

    trainer.engine.step = step  # type: ignore[method-assign]


def spoil_a_row(trainer: Trainer, row: str) -> None:
    """Give the micro-batch with a prepared row a loss that is not finite."""
    objective = trainer.parts.gradients.objective

    def spoiled(engine: Any, batch: Batch) -> torch.Tensor:
        loss = objective(engine, batch)
        return loss * float("nan") if int(row) in batch["rows"] else loss

    trainer.parts.gradients.objective = spoiled  # type: ignore[assignment]


class _Spoil(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(_ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
        return slopes[0] * float("nan")


def spoil_gradients(trainer: Trainer, step: str) -> None:
    """Give a step, or ``all``, gradients that are not finite, and leave the loss as it is."""
    objective = trainer.parts.gradients.objective

    def spoiled(engine: Any, batch: Batch) -> torch.Tensor:
        loss = objective(engine, batch)
        return _Spoil.apply(loss) if step in ("all", str(trainer.state.global_step + 1)) else loss

    trainer.parts.gradients.objective = spoiled  # type: ignore[assignment]


def spoil_weights(trainer: Trainer, step: str) -> None:
    """Break the weights after a step's update, whose loss and gradients are finite."""
    judge = trainer.guard.judge_update

    def spoiled(**measured: Any) -> None:
        if trainer.state.global_step == int(step):
            next(iter(trainer.engine.module.parameters())).data.fill_(float("nan"))
        judge(**measured)

    trainer.guard.judge_update = spoiled  # type: ignore[method-assign]


def stop_after(trainer: Trainer, step: str) -> None:
    """Ask the run to stop in the step that is to be its last."""
    begin = trainer.parts.stop_request.hold

    def hold() -> None:
        if trainer.state.global_step + 1 == int(step):
            trainer.parts.stop_request.reason = "the test"
        begin()

    trainer.parts.stop_request.hold = hold  # type: ignore[method-assign]


def kill_a_rank(trainer: Trainer, step: str) -> None:
    """Kill the second rank, as kill -9 does, where a step begins."""
    begin = trainer.parts.stop_request.hold

    def hold() -> None:
        if trainer.state.global_step + 1 == int(step) and trainer.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        begin()

    trainer.parts.stop_request.hold = hold  # type: ignore[method-assign]


def save_in_background(trainer: Trainer, _: str) -> None:
    """Copy the state aside and let a thread write it, as on GPUs."""
    trainer.saver.checkpointer.background = True


def run_out_of_memory(trainer: Trainer, step: str) -> None:
    """Raise what the allocator of a GPU raises."""
    objective = trainer.parts.gradients.objective

    def full(engine: Any, batch: Batch) -> torch.Tensor:
        if trainer.state.global_step + 1 == int(step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.")
        return objective(engine, batch)

    trainer.parts.gradients.objective = full  # type: ignore[assignment]


def fill_shared_memory(trainer: Trainer, _: str) -> None:
    """Leave no room for the third state in memory, on one rank."""
    memory = trainer.saver.memory
    assert memory is not None
    describe = memory.medium.describe

    def full(path: Path) -> Any:
        if trainer.ranks.rank == 1 and trainer.state.global_step >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return describe(path)

    memory.medium.describe = full  # type: ignore[method-assign]


def slow_down(trainer: Trainer, seconds: str) -> None:
    """Let the last rank's forward pass take longer, and compare the ranks every four steps."""
    straggler.WINDOW = 4
    objective = trainer.parts.gradients.objective

    def slow(engine: Any, batch: Batch) -> torch.Tensor:
        time.sleep(float(seconds) if trainer.ranks.rank == trainer.ranks.world_size - 1 else 0.0)
        return objective(engine, batch)

    trainer.parts.gradients.objective = slow  # type: ignore[assignment]


CHANGES: dict[str, Callable[[Trainer, str], None]] = {
    "gradients": record_gradients,
    "nan": spoil_a_row,
    "slopes": spoil_gradients,
    "weights": spoil_weights,
    "stop": stop_after,
    "kill": kill_a_rank,
    "background": save_in_background,
    "oom": run_out_of_memory,
    "full": fill_shared_memory,
    "slow": slow_down,
}


def run(change: str, value: str, arguments: list[str]) -> int:
    """Train with a change; returns the exit code."""
    from qwen_job.train import setup  # imports DeepSpeed

    build = setup.build_trainer

    def changed(*given: Any) -> Trainer:
        trainer = build(*given)
        CHANGES[change](trainer, value)
        return trainer

    setup.build_trainer = changed
    return main.main(arguments)


if __name__ == "__main__":
    from qwen_job.train.rendezvous import quiet_deepspeed

    quiet_deepspeed("cpu")
    change, value, _, *arguments = sys.argv[1:]
    os._exit(run(change, value, arguments))
