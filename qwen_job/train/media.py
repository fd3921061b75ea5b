"""Where a checkpoint goes: to disk, one folder that all ranks share, or to memory, one folder on every node."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from qwen_job.atomic import sync_folder
from qwen_job.run import states as memory
from qwen_job.run.folder import step_name
from qwen_job.run.launched import restarts
from qwen_job.run.manifest import FileEntry, describe, write_manifest
from qwen_job.run.states import State, Sum


class Medium(Protocol):
    """Where a checkpoint goes: one folder that all ranks share, or one for the ranks of a node."""

    @property
    def leads(self) -> bool:
        """Whether this rank writes what one rank writes for all, and makes the folder complete."""
        ...

    def aside(self, step: int) -> Path:
        """Return the folder that is written."""
        ...

    def prepare(self, step: int) -> None:
        """Make it, empty."""
        ...

    def describe(self, path: Path) -> Any:
        """Return what the manifest says about a file that was written."""
        ...

    def publish(self, step: int, files: Sequence[dict[str, Any]]) -> None:
        """Make it complete; ``files``: every rank's, by path relative to it."""
        ...


class Disk:
    """The run's folder of checkpoints: files are synced and hashed."""

    def __init__(self, folder: Path, zero_stage: int, expert_parallel_size: int = 1) -> None:
        self.folder, self.zero_stage, self.expert_parallel_size = folder, zero_stage, expert_parallel_size

    @property
    def leads(self) -> bool:
        return dist.get_rank() == 0

    def aside(self, step: int) -> Path:
        # A rank of an attempt that was restarted in place cannot write into the folder of a later one.
        attempt = f".{number}" if (number := restarts()) else ""
        return self.folder / f".{step_name(step)}{attempt}.partial"

    def prepare(self, step: int) -> None:
        for left_over in self.folder.glob(".step-*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
        self.aside(step).mkdir(parents=True)

    def describe(self, path: Path) -> FileEntry:
        return describe(path)

    def publish(self, step: int, files: Sequence[dict[str, Any]]) -> None:
        target, aside = self.folder / step_name(step), self.aside(step)
        entries = {name: entry for part in files for name, entry in part.items()}
        for folder in {(aside / name).parent for name in entries}:
            sync_folder(folder)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        sync_folder(self.folder)
        write_manifest(
            target,
            step=step,
            world_size=dist.get_world_size(),
            zero_stage=self.zero_stage,
            files=entries,
            expert_parallel_size=self.expert_parallel_size,
        )


class Memory:
    """This node's folder in /dev/shm, in which every node keeps what its own ranks need.

    ``kept``: the step of the newest state that all nodes have; it is deleted when the next but one is begun.
    """

    def __init__(self, home: Path, local_rank: int, ranks: int, zero_stage: int, expert_parallel_size: int = 1) -> None:
        self.home, self.zero_stage, self.expert_parallel_size = home, zero_stage, expert_parallel_size
        self._local_rank = local_rank
        self.ranks = ranks
        self.node, self.nodes = dist.get_rank() // ranks, dist.get_world_size() // ranks
        self.kept = -1

    @property
    def leads(self) -> bool:
        return self._local_rank == 0

    def path(self, step: int) -> Path:
        """Return the folder of this node's own state."""
        return memory.state_path(self.home, self.node, step)

    def aside(self, step: int) -> Path:
        return memory.aside(self.path(step))

    def prepare(self, step: int) -> None:
        memory.forget_nodes(self.home, others_than={self.node, (self.node - 1) % self.nodes})
        memory.make_room(self.path(step), self.kept)

    def describe(self, path: Path) -> Sum:
        return memory.crc_of(path)

    def publish(self, step: int, files: Sequence[dict[str, Any]]) -> None:
        mine = files[self.node * self.ranks : (self.node + 1) * self.ranks]
        entries = {name: entry for part in mine for name, entry in part.items()}
        place = (self.node, step, self.path(step), self.nodes, dist.get_world_size(), self.zero_stage)
        memory.publish(State(*place, entries, self.expert_parallel_size))
