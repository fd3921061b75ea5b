"""The DeepSpeed engine: built around a model and its optimizer, and what a run asks of it besides steps.

- ``Engine``: the part of DeepSpeed's engine that the trainer uses
- ``build_engine``, ``load_checkpoint``: before the first step; ``without_wildcards``: a folder as DeepSpeed reads it
- ``averages_gradients``: what the loss of a step is to be divided by
- ``was_skipped``, ``weights_are_finite``: after every update, and before a save
- ``whole_weights``: every weight in one place, for the export
"""

from __future__ import annotations

import contextlib
import copy
import glob
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import torch

from qwen_job.run.config import DeepSpeedConfig, TrainConfig
from qwen_job.train import expert_parallel
from qwen_job.train.deepspeed_config import expert_parallel_size, offloads_optimizer, zero_stage
from qwen_job.train.expert_parallel import expert_settings, unrecorded
from qwen_job.train.experts import gather_blocks_whole
from qwen_job.train.gradients import measure_gradients
from qwen_job.train.lean_zero import use_lean_zero
from qwen_job.train.ranks import Ranks


class Engine(Protocol):
    """DeepSpeed's engine around ``module``; ``step`` clips, takes the optimizer's step and drops the gradients."""

    module: Any
    optimizer: Any
    checkpoint_engine: Any
    save_non_zero_checkpoint: bool
    _copy_recovery_script: Callable[[str], None]

    def __call__(self, **inputs: Any) -> Any: ...

    def train(self) -> Any: ...

    def eval(self) -> Any: ...

    def backward(self, loss: torch.Tensor, *, scale_wrt_gas: bool) -> Any: ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None: ...

    def step(self) -> None: ...

    def get_global_grad_norm(self) -> Any: ...

    def was_step_applied(self) -> bool: ...

    def save_checkpoint(self, save_dir: str, *, tag: str, save_latest: bool) -> Any: ...


def build_engine(model: Any, optimizer: torch.optim.Optimizer, settings: DeepSpeedConfig) -> Engine:
    """Return the engine that trains ``model``. A collective of all ranks.

    ``settings``: deepspeed.json, resolved; an optimizer that is offloaded becomes DeepSpeed's CPU kernel.
    """
    given = copy.deepcopy(settings)
    given["zero_allow_untested_optimizer"] = True
    given["steps_per_print"] = math.inf  # the progress line is ours
    if offloads_optimizer(settings) and settings.get("zero_force_ds_cpu_optimizer", True):
        optimizer = _on_cpu(optimizer)
    gather_blocks_whole(model)
    if expert_parallel_size(settings) > 1:
        given["expert_parallel"] = expert_settings(model, settings)
    with unrecorded():
        engine: Engine = deepspeed.initialize(model=model, optimizer=optimizer, config=given)[0]
    measure_gradients(engine)
    use_lean_zero(engine.optimizer)
    return engine


def _on_cpu(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    defaults = {name: optimizer.defaults[name] for name in ("lr", "weight_decay")}
    found: torch.optim.Optimizer = DeepSpeedCPUAdam(optimizer.param_groups, adamw_mode=True, **defaults)
    return found


def torch_optimizer(engine: Engine) -> torch.optim.Optimizer:
    """Return the optimizer below DeepSpeed's own, whose parameter groups both share."""
    found = engine.optimizer
    while not isinstance(found, torch.optim.Optimizer):
        found = found.optimizer
    return found


def load_checkpoint(engine: Any, checkpoint: Path, config: TrainConfig) -> None:
    """Load weights and optimizer of a checkpoint, which may be a universal one. A collective of all ranks."""
    names = [group.get("name") for group in torch_optimizer(engine).param_groups]
    with without_wildcards(checkpoint) as folder:
        loaded, _ = engine.load_checkpoint(str(folder), load_lr_scheduler_states=True)
    if loaded is None:
        raise RuntimeError(f"DeepSpeed found no checkpoint in {checkpoint}")
    _separate_groups(engine, config.training.weight_decay)
    for group, name in zip(torch_optimizer(engine).param_groups, names, strict=True):
        if name is not None:
            group["name"] = name  # that of another size of groups came with the checkpoint


@contextlib.contextmanager
def without_wildcards(folder: Path) -> Iterator[Path]:
    """Give a folder another name if its own holds [, * or ?: DeepSpeed searches with its path as a pattern."""
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="qwen-job-") as aside:
        link = Path(aside) / "checkpoint"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def reload(engine: Any, checkpoint: Path, config: TrainConfig) -> None:
    """Load a checkpoint that these very ranks saved, whatever the run was resumed from. A collective of all ranks."""
    universal, engine._config.load_universal_checkpoint = engine._config.load_universal_checkpoint, False
    try:
        load_checkpoint(engine, checkpoint, config)
    finally:
        engine._config.load_universal_checkpoint = universal


def _separate_groups(engine: Engine, weight_decay: float) -> None:
    """Undo what DeepSpeed's ZeRO-3 does to a universal checkpoint: one step counter and one decay for all groups.

    A counter that groups share is advanced once for each of them.
    """
    optimizer = getattr(engine.optimizer, "optimizer", None)
    if optimizer is None:
        return
    decays = [weight_decay, 0.0, weight_decay] if len(optimizer.param_groups) > 1 else []
    for group, decay in zip(optimizer.param_groups, decays, strict=False):  # the third has experts
        group["weight_decay"] = decay
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def was_skipped(engine: Engine) -> bool:
    """Tell whether DeepSpeed left the last update out because gradients were not finite."""
    return bool(getattr(engine.optimizer, "overflow", False))


def gradient_norm_of(engine: Engine) -> float | None:
    """Return the norm of the last step's gradients before clipping; None where DeepSpeed measured none."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def averages_gradients(engine: Any) -> bool:
    """Tell whether gradients become the mean over ranks, and not their sum."""
    if engine.zero_optimization_partition_weights():
        return True  # ZeRO-3, whatever gradient_allreduce_op says
    return bool(getattr(engine.optimizer, "gradient_average", engine.gradient_average))


def weights_are_finite(engine: Engine, ranks: Ranks) -> bool:
    """Tell whether every weight on every rank is finite. A collective of all ranks."""
    parts = [getattr(parameter, "ds_tensor", parameter).detach() for parameter in engine.module.parameters()]
    largest = torch._foreach_norm([part for part in parts if part.numel()], float("inf"))
    return ranks.agree(torch.stack([value.float() for value in largest]).isfinite().all())


def whole_weights(engine: Any, settings: DeepSpeedConfig) -> dict[str, torch.Tensor]:
    """Return all weights by name, put together on rank 0 where ranks split them. A collective of all ranks."""
    if expert_parallel_size(settings) > 1:
        return expert_parallel.whole_weights(engine, settings)
    if zero_stage(settings) == 3:
        gathered: dict[str, torch.Tensor] = engine._zero3_consolidated_16bit_state_dict()
        return gathered
    from deepspeed.checkpoint.utils import clone_tensors_for_torch_save

    whole: dict[str, torch.Tensor] = clone_tensors_for_torch_save(engine.module.state_dict())
    return whole
