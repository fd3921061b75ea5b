"""Checkpoints on another number of ranks.

- ``make_universal``: DeepSpeed's universal checkpoint to resume from, made once beside the original
- ``load_weights``: the weights alone
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qwen_job.errors import EnvironmentFault, JobError
from qwen_job.run.folder import SCHEDULE, STATE, deepspeed_tag
from qwen_job.run.manifest import Checkpoint
from qwen_job.train.deepspeed_engine import without_wildcards
from qwen_job.train.universal_experts import put_together, take_apart


def check_stage(found: Checkpoint, stage: int) -> None:
    """Refuse a checkpoint of a ZeRO stage whose state cannot become this one's.

    Raises:
        JobError: one of the stages is 0 or 3, and they differ.
    """
    if found.zero_stage == stage or {found.zero_stage, stage} <= {1, 2}:
        return
    raise JobError(
        f"{found.path} was saved with ZeRO stage {found.zero_stage}, deepspeed.json says {stage}: its optimizer state "
        f"cannot be read; train with stage {found.zero_stage}, or start from its weights with another output_dir"
    )


def make_universal(found: Checkpoint, split: int) -> Path:
    """Return a folder that any number of ranks resumes from; made once, then found again.

    ``split``: ranks that will share the experts of a layer.

    Raises:
        EnvironmentFault: DeepSpeed's conversion failed.
    """
    target = found.path.parent / f".universal-{found.path.name}{'-split' if split > 1 else ''}"
    if (target / "latest_universal").exists():
        return target
    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    tag = deepspeed_tag(found.step)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    # Relative, because the tool searches with these paths as patterns.
    command += ["--input_folder", f"{found.path.name}/{tag}", "--output_folder", f"{aside.name}/{tag}_universal"]
    # Without the variables of this rank: the tool is a separate program.
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=kept, cwd=target.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise EnvironmentFault(
            f"{found.path}: cannot be converted for another number of ranks ({' '.join(reason)}); run it on "
            f"{found.world_size} ranks, as it was saved"
        )
    _convert_experts(aside / f"{tag}_universal" / "zero", found.expert_parallel_size, split)
    for name in (STATE, SCHEDULE, *(path.name for path in found.path.glob("rng_state_*.pth"))):
        shutil.copyfile(found.path / name, aside / name)
    (aside / "latest_universal").write_text(f"{tag}_universal", encoding="utf-8")
    aside.rename(target)
    return target


def _convert_experts(folder: Path, saved: int, split: int) -> None:
    """Convert between transformers' experts and AutoEP's, where only one of ``saved`` and ``split`` is 1."""
    if saved > 1 and split == 1:
        put_together(folder)
    elif saved == 1 and split > 1:
        take_apart(folder, split)


def load_weights(model: Any, found: Checkpoint) -> None:
    """Put the weights of a checkpoint into ``model``, whatever number of ranks saved it. A collective of all ranks."""
    import deepspeed

    partitioned = found.zero_stage == 3
    state = _weights(found) if dist.get_rank() == 0 else {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned):
            if dist.get_rank() == 0:
                # For ZeRO-3 the fp32 master weights, gathered one at a time and cast.
                parameter.data.copy_(state[name].contiguous())
        if not partitioned:
            dist.broadcast(parameter.data, src=0)


def _weights(found: Checkpoint) -> Mapping[str, Any]:
    tag = deepspeed_tag(found.step)
    if found.zero_stage == 3:
        from deepspeed.utils.zero_to_fp32 import (
            get_fp32_state_dict_from_zero_checkpoint,
        )

        with (
            without_wildcards(found.path) as folder,
            Path(os.devnull).open("w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            state: Mapping[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag, lazy_mode=True)
            return state
    path = found.path / tag / "mp_rank_00_model_states.pt"
    # Our own file, its hash just checked against the manifest.
    whole: Mapping[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)["module"]
    return whole


def discard_universal(checkpoints: Path) -> None:
    """Delete conversions: once a run has saved again, nobody resumes from them."""
    for folder in checkpoints.glob(".universal-*"):
        shutil.rmtree(folder, ignore_errors=True)
