"""What every part of our trainer stands on: its parts, its batches, its loss, and words between the ranks."""

from __future__ import annotations

import resource
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from transformers import Trainer
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback

from qwen_job.run.config import TrainConfig
from qwen_job.run.signals import StopWish
from qwen_job.train.attention import inputs_for, window_of
from qwen_job.train.batches import Batch, Loader, StepSampler
from qwen_job.train.checkpoints import Checkpointer
from qwen_job.train.flops import Shape, StepTotals
from qwen_job.train.guards import LossGuard
from qwen_job.train.identity import Identity
from qwen_job.train.loss import LossHead
from qwen_job.train.modeling import DTYPES, build_optimizer
from qwen_job.train.runlog import RunLog
from qwen_job.train.trackers import Guarded
from qwen_job.train.watchdog import Watchdog


class Parts(NamedTuple):
    """What a trainer is made of besides the model."""

    config: TrainConfig
    deepspeed: dict[str, Any]
    log: RunLog
    wish: StopWish
    watchdog: Watchdog
    head: LossHead
    shape: Shape
    checkpointer: Checkpointer
    pad_id: int
    train: Any
    eval: Any
    identity: Identity


class BaseTrainer(Trainer):
    """Hugging Face's Trainer with our batches, loss and optimizer."""

    def __init__(self, model: Any, args: Any, parts: Parts) -> None:
        super().__init__(model=model, args=args, train_dataset=parts.train, eval_dataset=parts.eval)
        self.remove_callback(PrinterCallback)
        self.parts = parts
        reporters = tuple(get_reporting_integration_callbacks(args.report_to))  # type: ignore[no-untyped-call]
        self.callback_handler.callbacks = [
            Guarded(callback, parts.log.say) if isinstance(callback, reporters) else callback
            for callback in self.callback_handler.callbacks
        ]
        self._guard = LossGuard(parts.config.guards.loss_spike_factor)
        self._window = window_of(model.config)
        self._totals = StepTotals(0, 0, 0, 0)
        self._stop: str | None = None
        self._losses: list[tuple[Batch, torch.Tensor]] = []
        self._step_loss = 0.0
        self._boundary = -1
        self._clock = 0.0
        self._skipped = 0  # micro-batches left out so far
        self._spoiled = 0  # those of this step, on all ranks
        self._broken = 0  # steps in a row of which no row had a loss
        self._sound = 0  # the last step whose loss was a number
        self._unapplied = 0  # steps in a row whose update DeepSpeed left out
        self._saved: int | None = None
        self._extends = (parts.config.output_dir / "done.json").exists()
        self._reserved = False
        self.eval_loss: float | None = None

    @property
    def _engine(self) -> Any:
        return self.model_wrapped

    def get_train_dataloader(self) -> Any:
        """One permutation of the rows an epoch, dealt to steps whatever the number of ranks."""
        training = self.parts.config.training
        loader = self._loader(
            self.parts.train,
            training.per_device_train_batch_size,
            training.gradient_accumulation_steps,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        course = self.parts.identity.course
        loader.sampler_of_steps.begin_at(course.epoch, course.row)
        loader.sampler_of_steps.leave_out(self.parts.config.guards.skip_rows)
        return loader

    def _loader(self, rows: Any, micro: int, accumulation: int, seed: int | None) -> Loader:
        sampler = StepSampler(len(rows), micro, accumulation, self.args.process_index, self.args.world_size, seed)
        workers = self.args.dataloader_num_workers if seed is not None else 0
        # Compiled layers want one shape.
        length = int(self.parts.config.data["max_length"]) if self.parts.config.torch_compile else 1
        return Loader(
            rows,
            sampler,
            self.parts.pad_id,
            workers,
            self.args.dataloader_pin_memory,
            length,
            prefetch=self.args.dataloader_prefetch_factor,
            persistent=self.args.dataloader_persistent_workers,
        )

    def num_examples(self, dataloader: Any) -> int:
        """Rows of one epoch."""
        return len(dataloader.dataset)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW that decays matrices only."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.parts.config, self.parts.deepspeed)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        """The MFU counts them once a step instead."""
        return 0

    def _summed_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        placed = {
            key: value.to(self.args.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }
        config = self.parts.config
        inputs = inputs_for(placed, config.attention, DTYPES[config.precision], self._window)
        return self.parts.head.loss(model, inputs, placed["targets"], placed["chosen"])

    def _exchange(self, numbers: list[int]) -> torch.Tensor:
        """Gather every rank's numbers: [world_size, len(numbers)], int64 on the CPU."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self.args.device)
        everyone = [torch.empty_like(mine) for _ in range(self.args.world_size)]
        dist.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def _moved(self, phase: str) -> None:
        self.parts.watchdog.moved(self.state.global_step + 1, phase)

    def _memory(self) -> int:
        if self.args.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def _report(self, values: dict[str, Any]) -> None:
        """Hand figures to TensorBoard and the like; the Trainer's own history would only grow."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(values))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand on what the Trainer reports at the end, without the loss and FLOPs that it did not count: both 0."""
        super().log(
            {name: value for name, value in logs.items() if name not in ("train_loss", "total_flos")}, start_time
        )

    def _wants_best(self) -> bool:
        return self.parts.config.training.load_best_model_at_end
