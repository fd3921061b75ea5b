"""Where the trainer meets its checkpoints: what goes into one, when it is finished, and what comes back."""

from __future__ import annotations

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from qwen_job.run.manifest import check, prune
from qwen_job.train.arguments import check_schedule
from qwen_job.train.gradients import measure_gradients
from qwen_job.train.identity import NAME as IDENTITY
from qwen_job.train.settings_diff import NAME, settings_text
from qwen_job.train.trainer_course import CourseTrainer
from qwen_job.train.universal import discard_universal, load_weights


class SavingTrainer(CourseTrainer):
    """A trainer that saves through the checkpointer, one save under way at a time."""

    def _reserve_room(self) -> None:
        """After the first step, when the optimizer's state exists: so that the first save is as quick as the others."""
        if self.parts.checkpointer.background and not self._reserved:
            self._reserved = True
            if reason := self.parts.checkpointer.reserve(self._collect):
                self.parts.log.say(reason)

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
        self._engine.save_checkpoint(str(folder), tag=f"global_step{step}", save_latest=False)
        checkpointer.keep(f"rng_state_{self.args.process_index}.pth", self._random_state())
        if self.args.process_index == 0:
            checkpointer.keep_text("latest", f"global_step{step}")
            scheduler: Any = self.lr_scheduler
            checkpointer.keep("scheduler.pt", scheduler.state_dict())
            checkpointer.keep_text("trainer_state.json", self._state_text())
            checkpointer.keep_text(NAME, settings_text(self.parts.config))
            checkpointer.keep_text(IDENTITY, self.parts.identity.text())

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
        check_schedule(self.args, max_steps)
        if self.args.process_index == 0:
            # Of a run that is being extended: it is not complete from here on.
            (self.parts.config.output_dir / "done.json").unlink(missing_ok=True)
        prepared = super()._prepare_for_training(max_steps, *arguments)  # type: ignore[no-untyped-call]
        self._mend_groups()
        self._renew_learning_rate()
        self._engine.checkpoint_engine = self.parts.checkpointer
        self._engine._copy_recovery_script = self.parts.checkpointer.keep_recovery_scripts
        measure_gradients(self._engine)
        return prepared

    def _mend_groups(self) -> None:
        """Undo what DeepSpeed's ZeRO-3 does to a universal checkpoint: one step counter and one decay for all groups.

        A counter that groups share is advanced once for each of them.
        """
        optimizer = getattr(getattr(self.model_wrapped, "optimizer", None), "optimizer", None)
        if optimizer is None:
            return
        decays = [self.parts.config.training.weight_decay, 0.0] if len(optimizer.param_groups) == 2 else []
        for group, decay in zip(optimizer.param_groups, decays, strict=False):
            group["weight_decay"] = decay
        for state in optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def _renew_learning_rate(self) -> None:
        """Let train.yaml's learning rate and length hold after a checkpoint of others was loaded, and say so."""
        schedule: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        rate, groups = self.parts.config.training.learning_rate, self._engine.optimizer.param_groups
        if not hasattr(schedule, "lr_lambdas"):
            return
        now = [rate * curve(schedule.last_epoch) for curve in schedule.lr_lambdas]
        if all(base == rate for base in schedule.base_lrs) and [group["lr"] for group in groups] == now:
            return
        before = groups[0]["lr"]
        schedule.base_lrs = [rate] * len(schedule.base_lrs)
        schedule._last_lr = now
        for group, value in zip(groups, now, strict=True):
            group["initial_lr"], group["lr"] = rate, value
        kind = self.parts.config.training.lr_scheduler_type
        self.parts.log.say(
            f"learning rate: {before:.4g} -> {now[0]:.4g} at step {self.state.global_step + 1}, "
            f"by the {kind} schedule of {self.state.max_steps} steps"
        )

    @property
    def saved_step(self) -> int | None:
        """Return the step of the newest finished checkpoint."""
        return self._saved

    def settle_best(self) -> None:
        """Finish what is being saved, then bring back the best checkpoint's weights if that was asked for."""
        self._settle()
        if self.args.process_index == 0:
            discard_universal(self.parts.checkpointer.folder)
        best = self.state.best_global_step
        if not self._wants_best() or best in (None, self.state.global_step):
            return
        verdict = [check(self.parts.checkpointer.folder / f"step-{best}") if self.args.process_index == 0 else ""]
        dist.broadcast_object_list(verdict, src=0)
        found = verdict[0]
        if isinstance(found, str):
            self.parts.log.say(
                f"step-{best} had the lowest held-out loss and cannot be used ({found}): kept the last weights"
            )
            return
        self.parts.log.say(f"taking the weights of {found.path.name}, the lowest held-out loss")
        load_weights(self._engine.module, found)
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
