"""Checkpoints of a run: what goes into one, when it is finished, which are kept, and what comes back.

One save is under way at a time; where there is room for a copy, training continues while it is written.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import IDENTITY, SCHEDULE, SETTINGS, STATE, deepspeed_tag, step_name
from qwen_job.run.manifest import check, prune
from qwen_job.train.checkpoints import Checkpointer, MemoryFull
from qwen_job.train.deepspeed_engine import Engine, reload
from qwen_job.train.identity import Identity
from qwen_job.train.memory_saves import MemorySaves
from qwen_job.train.ranks import Ranks
from qwen_job.train.rate_schedule import Schedule
from qwen_job.train.run_state import RunState
from qwen_job.train.runlog import RunLog
from qwen_job.train.settings_diff import settings_text
from qwen_job.train.universal import discard_universal, load_weights


class Saver:
    """Saves engine, schedule, state and random numbers through ``checkpointer``.

    ``saved`` is the step of the newest finished checkpoint on disk, ``memory`` what keeps states in memory besides.
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
        memory: MemorySaves | None = None,
    ) -> None:
        self._config, self._identity = config, identity
        self._settings = settings_text(config)  # training pauses for a save: what never changes is written once
        self.engine, self._schedule, self._state = engine, schedule, state
        self._ranks, self._log = ranks, log
        self._reserved = False
        self.checkpointer = checkpointer
        self.saved = saved
        self.memory = memory
        engine.checkpoint_engine = checkpointer
        engine._copy_recovery_script = checkpointer.keep_recovery_scripts

    @property
    def last(self) -> int | None:
        """The step of the newest checkpoint, finished or under way."""
        under_way = self.checkpointer.under_way if self._is_for_disk else None
        return under_way if under_way is not None else self.saved

    @property
    def _is_for_disk(self) -> bool:
        return self.checkpointer.medium is self.checkpointer.disk

    def reserve_room(self) -> None:
        """Reserve host memory for copies, once the optimizer's state exists: the first save is then as quick as others.

        A collective of all ranks.
        """
        if self.checkpointer.background and not self._reserved:
            self._reserved = True
            # To memory, a rank of every node saves the weights: the most that there is to copy.
            if reason := self.checkpointer.reserve(self._collect, self.memory.medium if self.memory else None):
                self._log.say(reason)

    def save(self, *, wait: bool = False) -> None:
        """Save the state's step; a save under way is finished first. A collective of all ranks.

        ``wait``: no step follows that could be trained while files are written.
        """
        self.settle()
        by_memory = not wait and not self.checkpointer.background
        if self.memory is not None and by_memory and self._save_by_memory(self.memory):
            return
        self.checkpointer.begin(self._state.global_step, self._collect)
        if not self.checkpointer.background:
            self._finish()

    def _save_by_memory(self, memory: MemorySaves) -> bool:
        """Keep the step in memory, then write it to disk from there while training continues; tells whether it can."""
        began, step, rank = time.monotonic(), self._state.global_step, self._ranks.rank
        memory.settle()
        self.checkpointer.begin(step, self._collect, memory.medium)
        self._finish()
        if self.memory is None:
            return False
        files = self.checkpointer.files
        mine = [name for name in files[rank] if rank == 0 or name not in files[0]]
        self.checkpointer.begin_copy(step, memory.medium.path(step), mine, began)
        return True

    def wants_to_remember(self, seconds: float, *, copied: bool) -> bool:
        """Tell whether the state is to be kept in memory; ``seconds``: the step's. The same on all ranks.

        ``copied``: no node copies a state at this time. While one does, or files are written, no other is begun.
        """
        if self.memory is None:
            return False
        return self.memory.due(self._state.global_step, seconds) and copied and self.checkpointer.under_way is None

    def remember(self) -> None:
        """Begin to keep the state's step in memory. A collective of all ranks."""
        if self.memory is not None:
            self.checkpointer.begin(self._state.global_step, self._collect, self.memory.medium)

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
        split = self.checkpointer.disk.expert_parallel_size
        here = (self._ranks.world_size, split)
        if max(split, found.expert_parallel_size) > 1 and (found.world_size, found.expert_parallel_size) != here:
            self._log.say(
                f"{found.path.name} had the lowest held-out loss, but was saved on {found.world_size} ranks, with "
                f"experts split over {found.expert_parallel_size}: keeping the last weights"
            )
            return False
        self._log.say(f"taking the weights of {found.path.name}, the lowest held-out loss")
        if split > 1:
            reload(self.engine, found.path, self._config)
        else:
            load_weights(self.engine.module, found)
        return True

    @property
    def _wants_best(self) -> bool:
        return self._config.training.load_best_model_at_end

    def _collect(self, folder: Path) -> None:
        checkpointer, step = self.checkpointer, self._state.global_step
        leads = checkpointer.medium.leads
        writes = self.engine.save_non_zero_checkpoint
        # Every node's memory needs the weights, which are written once to disk.
        self.engine.save_non_zero_checkpoint = writes or leads
        try:
            self.engine.save_checkpoint(str(folder), tag=deepspeed_tag(step), save_latest=False)
        finally:
            self.engine.save_non_zero_checkpoint = writes
        checkpointer.keep(_random_file(self._ranks.rank), _random_state(self._ranks.device))
        if leads:
            checkpointer.keep_text("latest", deepspeed_tag(step))
            checkpointer.keep(SCHEDULE, self._schedule.state())
            checkpointer.keep_text(STATE, self._state.text())
            checkpointer.keep_text(SETTINGS, self._settings)
            checkpointer.keep_text(IDENTITY, self._identity.text())

    def _finish(self) -> None:
        if not self._is_for_disk:
            return self._finish_in_memory()
        saved = self.checkpointer.finish()
        self._log.write("save", saved.step, seconds=saved.seconds, pause_seconds=saved.pause_seconds, bytes=saved.bytes)
        self.saved = saved.step
        if self._ranks.rank == 0:
            best = self._state.best_global_step if self._wants_best else None
            keep_steps = [] if best is None else [best]
            self.checkpointer.guard()
            prune(self.checkpointer.folder, keep=self._config.training.save_total_limit, keep_steps=keep_steps)
            discard_universal(self.checkpointer.folder)
        return None

    def _finish_in_memory(self) -> None:
        memory, step = self.memory, self.checkpointer.under_way
        assert memory is not None
        try:
            saved = self.checkpointer.finish()
            reason = memory.shortage(saved)
        except MemoryFull as error:
            reason = str(error)
        if reason:
            self._log.say(f"step {step} could not be kept in memory ({reason}): from now on, states go to disk only")
            memory.stop()
            self.memory = None
            return
        if text := memory.finish(saved):
            self._log.say(text)
        size, pause = saved.bytes, saved.pause_seconds
        self._log.write("memory", saved.step, seconds=saved.seconds, pause_seconds=pause, bytes=size)


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
