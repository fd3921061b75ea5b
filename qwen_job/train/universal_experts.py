"""The experts of a universal checkpoint, as transformers has them or as AutoEP does.

- ``put_together``: for ranks that have all experts;  ``take_apart``: for ranks that split them

DeepSpeed keeps a folder for each tensor, with a file each for its master weights and Adam's two moments, which are
cut and joined like the weights.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import CAT_DIM, EP_IS_EXPERT_PARAM, EP_NUM_EXPERTS, PARAM
from torch import Tensor

from qwen_job.train.expert_parallel import ALIAS, named_by_autoep, renamed

_STATES = ("fp32.pt", "exp_avg.pt", "exp_avg_sq.pt")
_OPTIMIZER = "optimizer_state.pt"


def put_together(folder: Path) -> None:
    """Give the experts below ``folder`` the names and shapes of transformers: w1 and w3 become gate_up_proj."""
    for place in _places(folder):
        name = place.name
        if ALIAS in name:
            shutil.rmtree(place)
        elif name.endswith(".mlp.experts.w1"):
            other, target = place.with_name(f"{name[:-1]}3"), place.with_name(f"{name[:-2]}gate_up_proj")
            target.mkdir()
            for state in _STATES:
                _save({CAT_DIM: 0, PARAM: torch.cat((_load(place / state), _load(other / state)), 1)}, target / state)
            _finish(target, place, other)
        elif name.endswith(".mlp.experts.w2"):
            for state in _STATES:
                _save({CAT_DIM: 0, PARAM: _load(place / state)}, place / state)
            place.rename(place.with_name(f"{name[:-2]}down_proj"))
        elif renamed(name) != name:
            place.rename(place.with_name(renamed(name)))


def take_apart(folder: Path, split: int) -> None:
    """Give the experts below ``folder`` the names and shapes of AutoEP, for groups of ``split`` ranks."""
    shapes = _shapes(folder.parent)
    for place in _places(folder):
        name = place.name
        if name.endswith(".mlp.experts.gate_up_proj"):
            targets = [place.with_name(name.replace("gate_up_proj", matrix)) for matrix in ("w1", "w3")]
            for number, target in enumerate(targets):
                target.mkdir()
                for state in _STATES:
                    whole = _load(place / state).reshape(shapes[name])
                    _save(_expert(whole.chunk(2, 1)[number].clone()), target / state)
                _finish(target, place)
            shutil.rmtree(place)
        elif name.endswith(".mlp.experts.down_proj"):
            for state in _STATES:
                _save(_expert(_load(place / state).reshape(shapes[name])), place / state)
            place.rename(place.with_name(name.replace("down_proj", "w2")))
        elif named_by_autoep(name) != name:
            place.rename(place.with_name(named_by_autoep(name)))
    _add_group(folder / _OPTIMIZER, split)


def _places(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if re.search(r"\.mlp\.", path.name))


def _shapes(folder: Path) -> dict[str, torch.Size]:
    """Return the shapes that the saved ranks had: ZeRO-3's converted tensors are flat."""
    first = min(folder.glob("*_model_states.pt"))
    groups = torch.load(first, map_location="cpu", mmap=True, weights_only=False)["param_shapes"]
    return {name: shape for group in groups for name, shape in group.items()}


def _load(path: Path) -> Tensor:
    value = torch.load(path, weights_only=False)
    tensor: Tensor = value[PARAM] if isinstance(value, dict) else value
    return tensor


def _save(value: dict[str, Any], path: Path) -> None:
    torch.save(value, path)


def _expert(tensor: Tensor) -> dict[str, Any]:
    return {PARAM: tensor, CAT_DIM: 0, EP_IS_EXPERT_PARAM: True, EP_NUM_EXPERTS: len(tensor)}


def _finish(target: Path, *sources: Path) -> None:
    """Copy what is kept besides, the steps of ZeRO-1 and 2, to ``target``; drop sources that are used up."""
    for path in sources[0].glob("step.pt"):
        shutil.copyfile(path, target / path.name)
    if target.name.endswith("gate_up_proj"):
        for source in sources:
            shutil.rmtree(source)


def _add_group(path: Path, split: int) -> None:
    """Give the optimizer of ZeRO-1 and 2 the group of experts, decayed like the first."""
    state = torch.load(path, weights_only=False)
    groups = state.get("param_groups")
    if groups is not None:
        groups.append({**groups[0], "moe": True, "name": f"ep_size_{split}", "params": [len(groups)]})
        torch.save(state, path)
