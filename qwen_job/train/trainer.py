"""Hugging Face's Trainer with our steps: its loop, optimizer wiring and integrations; our batches, loss,
checkpoints and figures.

One optimizer step, in the Trainer's order:
  get_batch_samples             fetch the step's micro-batches; ranks exchange token counts and stop wishes
  training_step (each micro)    summed loss over the tokens of the whole step; the guard before the last backward
  _maybe_log_save_evaluate      the step boundary: figures, evaluation, checkpoint, stop
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from qwen_job.errors import StoppedAndSaved, TrainingDiverged
from qwen_job.train.attention import inputs_for
from qwen_job.train.batches import Batch, Loader, StepSampler, empty_like
from qwen_job.train.checkpoints import Checkpointer
from qwen_job.train.config import TrainConfig
from qwen_job.train.figures import Shape, StepTotals, step_flops, utilisation
from qwen_job.train.guards import LossGuard, Suspect, diverged_message
from qwen_job.train.loss import LossHead
from qwen_job.train.manifest import prune
from qwen_job.train.modeling import DTYPES, build_optimizer
from qwen_job.train.runlog import RunLog
from qwen_job.train.signals import StopWish
from qwen_job.train.universal import discard_universal
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


class JobTrainer(Trainer):
    """One run. Raises StoppedAndSaved, TrainingDiverged or EnvironmentFault out of ``train``."""

    def __init__(self, model: Any, args: Any, parts: Parts) -> None:
        super().__init__(model=model, args=args, train_dataset=parts.train, eval_dataset=parts.eval)
        self.remove_callback(PrinterCallback)
        self.parts = parts
        self._guard = LossGuard(parts.config.guards.loss_spike_factor)
        self._totals = StepTotals(0, 0, 0, 0)
        self._stop: str | None = None
        self._losses: list[tuple[Batch, torch.Tensor]] = []
        self._step_loss = 0.0
        self._boundary = -1
        self._clock = 0.0
        self._skipped = 0
        self._saved: int | None = None
        self.eval_loss: float | None = None

    # Data.

    def get_train_dataloader(self) -> Any:
        """One permutation of the rows an epoch, dealt to steps whatever the number of ranks."""
        training = self.parts.config.training
        return self._loader(
            self.parts.train,
            training.per_device_train_batch_size,
            training.gradient_accumulation_steps,
            self.args.data_seed or self.args.seed,
        )

    def _loader(self, rows: Any, micro: int, accumulation: int, seed: int | None) -> Loader:
        sampler = StepSampler(len(rows), micro, accumulation, self.args.process_index, self.args.world_size, seed)
        workers = self.args.dataloader_num_workers if seed is not None else 0
        # Compiled layers want one shape.
        length = int(self.parts.config.data["max_length"]) if self.parts.config.torch_compile else 1
        return Loader(rows, sampler, self.parts.pad_id, workers, self.args.dataloader_pin_memory, length)

    def num_examples(self, dataloader: Any) -> int:
        """Rows of one epoch."""
        return len(dataloader.dataset)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        """Fetch one step and exchange in a single collective what the ranks must agree on."""
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
        self._losses, self._step_loss = [], 0.0
        return batches, self._totals.targets

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

    # Loss.

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

    def _summed_loss(self, model: Any, batch: Batch) -> torch.Tensor:
        placed = {
            key: value.to(self.args.device, non_blocking=True) if torch.is_tensor(value) else value
            for key, value in batch.items()
        }
        config = self.parts.config
        inputs = inputs_for(placed, config.attention, DTYPES[config.precision])
        return self.parts.head.loss(model, inputs, placed["targets"], placed["chosen"])

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

    # The step boundary.

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
            self._record(grad_norm, learning_rate)
        if self.control.should_evaluate:
            metrics = self._evaluate(trial, ignore_keys_for_eval)
            if self._determine_best_metric(metrics=metrics, trial=trial) and self._wants_best():
                self.control.should_save = True
            self._stop_early()
        if (self.control.should_save or self._stop) and self.state.global_step != self._last_saved():
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
        if self.state.global_step % self.parts.config.training.logging_steps == 0:
            self._report({key: value for key, value in values.items() if value is not None})

    def _report(self, values: dict[str, Any]) -> None:
        """Hand figures to TensorBoard and the like; the Trainer's own history would only grow."""
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(values))

    # Optimizer and evaluation.

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW that decays matrices only."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.parts.config, self.parts.deepspeed)
        return self.optimizer

    def floating_point_ops(self, inputs: Any) -> int:
        """The MFU counts them once a step instead."""
        return 0

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

    def _wants_best(self) -> bool:
        return self.parts.config.training.load_best_model_at_end

    def _stop_early(self) -> None:
        patience = self.parts.config.training.early_stopping_patience
        best, every = self.state.best_global_step, int(self.args.eval_steps or 1)
        if patience is not None and best is not None and self.state.global_step - best >= patience * every:
            self.parts.log.say(f"no better held-out loss since step {best}: stopping early")
            self.control.should_training_stop = True
            self.control.should_save = True

    # Checkpoints.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpointer = self.parts.checkpointer
        self._moved("saving")
        self._settle()
        checkpointer.begin(self.state.global_step, self._collect)
        if not checkpointer.background:
            self._finish_save()
        self._clock = time.monotonic()

    def _collect(self, folder: Path) -> None:
        checkpointer, step = self.parts.checkpointer, self.state.global_step
        engine: Any = self.model_wrapped
        engine.save_checkpoint(str(folder), tag=f"global_step{step}", save_latest=False)
        checkpointer.keep(f"rng_state_{self.args.process_index}.pth", self._random_state())
        if self.args.process_index == 0:
            checkpointer.keep_text("latest", f"global_step{step}")
            scheduler: Any = self.lr_scheduler
            checkpointer.keep("scheduler.pt", scheduler.state_dict())
            checkpointer.keep_text("trainer_state.json", self._state_text())

    def _state_text(self) -> str:
        state = dataclasses.asdict(self.state)
        # The history is in metrics.jsonl, and paths of this folder would not survive its move.
        state |= {"log_history": [], "best_model_checkpoint": None, "stateful_callbacks": {}}
        return json.dumps(state, indent=1, sort_keys=True) + "\n"

    def _random_state(self) -> dict[str, Any]:
        state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore this rank's random state; a rank that the saved run did not have starts from the seed."""
        path = Path(checkpoint or "") / f"rng_state_{self.args.process_index}.pth"
        if checkpoint is None or not path.is_file():
            return
        # Our own file, checked against the manifest; numpy's state is not a plain tensor.
        state = torch.load(path, weights_only=False)
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.args.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"])

    def _prepare_for_training(self, max_steps: int, *arguments: Any) -> Any:
        self.parts.log.total_steps = max_steps
        prepared = super()._prepare_for_training(max_steps, *arguments)  # type: ignore[no-untyped-call]
        self.model_wrapped.checkpoint_engine = self.parts.checkpointer
        return prepared

    def settle_best(self) -> None:
        """Finish what is being saved, then bring back the best checkpoint's weights if that was asked for."""
        self._settle()
        best = self.state.best_global_step
        if not self._wants_best() or best in (None, self.state.global_step):
            return
        folder = self.parts.checkpointer.folder / f"step-{best}"
        self.parts.log.say(f"taking the weights of {folder.name}, the lowest held-out loss")
        engine: Any = self.model_wrapped
        engine.load_checkpoint(
            str(folder), tag=f"global_step{best}", load_module_only=True, load_optimizer_states=False
        )
        self.eval_loss = self.state.best_metric

    def _finish_save(self) -> None:
        saved = self.parts.checkpointer.finish()
        log, limit = self.parts.log, self.parts.config.training.save_total_limit
        log.write("save", saved.step, seconds=saved.seconds, pause_seconds=saved.pause_seconds, bytes=saved.bytes)
        self._saved = saved.step
        if self.args.process_index == 0:
            best = self.state.best_global_step if self._wants_best() else None
            prune(self.parts.checkpointer.folder, keep=limit, keep_steps=[] if best is None else [best])
            discard_universal(self.parts.checkpointer.folder)

    def _settle(self) -> None:
        """Finish the save under way, if there is one."""
        if self.parts.checkpointer.under_way is not None:
            self._finish_save()

    def _last_saved(self) -> int | None:
        under_way = self.parts.checkpointer.under_way
        return under_way if under_way is not None else self._saved


def _source(rows: Any, row: int, files: list[dict[str, Any]]) -> str:
    """Name the user's rows that were packed into a prepared one: file:row, file:row."""
    members = rows[row].source_rows[:4]
    return ", ".join(f"{Path(files[file]['path']).name}:{number}" for file, number in members)
