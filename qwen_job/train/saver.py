"""Checkpoints of a run: what goes into one, when it is finished, which are kept, and what comes back.

One save is under way at a time; where there is room for a copy, training continues while it is written.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import IDENTITY, SCHEDULE, SETTINGS, STATE, step_name
from qwen_job.run.manifest import check, prune
from qwen_job.train.checkpoints import Checkpointer
from qwen_job.train.deepspeed_engine import Engine
from qwen_job.train.identity import Identity
from qwen_job.train.ranks import Ranks
from qwen_job.train.rate_schedule import Schedule
from qwen_job.train.run_state import RunState
from qwen_job.train.runlog import RunLog
from qwen_job.train.settings_diff import settings_text
from qwen_job.train.universal import discard_universal, load_weights


class Saver:
    """Saves engine, schedule, state and random numbers through ``checkpointer``.

    ``saved`` is the step of the newest finished checkpoint: at first the one that the run resumed from.
    """

    def __init__(
        self,
        config: TrainConfig,
        checkpointer: Checkpointer,
        engine: Engine,
        schedule: Schedule,
        state: RunState,
        identity: Identity,
        ranks: Ranks,
        log: RunLog,
        saved: int | None = None,
    ) -> None:
        self._config, self._identity = config, identity
        self.engine, self._schedule, self._state = engine, schedule, state
        self._ranks, self._log = ranks, log
        self._reserved = False
        self.checkpointer = checkpointer
        self.saved = saved
        engine.checkpoint_engine = checkpointer
        engine._copy_recovery_script = checkpointer.keep_recovery_scripts

    @property
    def last(self) -> int | None:
        """The step of the newest checkpoint, finished or under way."""
        under_way = self.checkpointer.under_way
        return under_way if under_way is not None else self.saved

    def reserve_room(self) -> None:
        """Reserve host memory for copies, once the optimizer's state exists: the first save is then as quick as others.

        A collective of all ranks.
        """
        if self.checkpointer.background and not self._reserved:
            self._reserved = True
            if reason := self.checkpointer.reserve(self._collect):
                self._log.say(reason)

    def save(self) -> None:
        """Save the state's step; a save under way is finished first. A collective of all ranks."""
        self.settle()
        self.checkpointer.begin(self._state.global_step, self._collect)
        if not self.checkpointer.background:
            self._finish()

    def finish_if(self, *, written: bool) -> None:
        """Finish the save under way if all ranks have ``written`` their files. A collective of all ranks then."""
        if self.checkpointer.under_way is not None and written:
            self._finish()

    def settle(self) -> int | None:
        """Finish the save under way, if there is one; returns the newest checkpoint's step. A collective."""
        if self.checkpointer.under_way is not None:
            self._finish()
        return self.saved

    def restore_best(self) -> bool:
        """Load the weights of the lowest held-out loss, if train.yaml asks for it; tells whether that was done.

        A collective of all ranks.
        """
        self.settle()
        first = self._ranks.rank == 0
        if first:
            discard_universal(self.checkpointer.folder)
        best = self._state.best_global_step
        if not self._wants_best or best in (None, self._state.global_step):
            return False
        found = self._ranks.from_first(check(self.checkpointer.folder / step_name(best)) if first else "")
        if isinstance(found, str):
            self._log.say(
                f"step-{best} had the lowest held-out loss but cannot be used ({found}): keeping the last weights"
            )
            return False
        self._log.say(f"taking the weights of {found.path.name}, the lowest held-out loss")
        load_weights(self.engine.module, found)
        return True

    @property
    def _wants_best(self) -> bool:
        return self._config.training.load_best_model_at_end

    def _collect(self, folder: Path) -> None:
        checkpointer, step = self.checkpointer, self._state.global_step
        self.engine.save_checkpoint(str(folder), tag=f"global_step{step}", save_latest=False)
        checkpointer.keep(_random_file(self._ranks.rank), _random_state(self._ranks.device))
        if self._ranks.rank == 0:
            checkpointer.keep_text("latest", f"global_step{step}")
            checkpointer.keep(SCHEDULE, self._schedule.state())
            checkpointer.keep_text(STATE, self._state.text())
            checkpointer.keep_text(SETTINGS, settings_text(self._config))
            checkpointer.keep_text(IDENTITY, self._identity.text())

    def _finish(self) -> None:
        saved = self.checkpointer.finish()
        self._log.write("save", saved.step, seconds=saved.seconds, pause_seconds=saved.pause_seconds, bytes=saved.bytes)
        self.saved = saved.step
        if self._ranks.rank == 0:
            best = self._state.best_global_step if self._wants_best else None
            keep_steps = [] if best is None else [best]
            prune(self.checkpointer.folder, keep=self._config.training.save_total_limit, keep_steps=keep_steps)
            discard_universal(self.checkpointer.folder)


def restore_random_state(checkpoint: Path, ranks: Ranks) -> None:
    """Restore this rank's random state; a rank that the saved run did not have starts from the seed."""
    path = checkpoint / _random_file(ranks.rank)
    if not path.is_file():
        return
    # Our own file, checked against the manifest; numpy's state is not a plain tensor.
    state = torch.load(path, weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and ranks.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"])


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _random_file(rank: int) -> str:
    return f"rng_state_{rank}.pth"
