"""The names of trained weights in files: those of the folder that training started from.

transformers renames what it loads, and names it back when it saves; of weights that ZeRO-3 put together it gets both
the experts and the prefix wrong, so it is not asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qwen_job.facts.expert_weights import names_fused
from qwen_job.facts.families import FAMILIES
from qwen_job.facts.weights import TEXT_PREFIX
from qwen_job.models.tensors import read_folder

_EXPERTS = re.compile(r"(.+\.mlp\.experts)\.(gate_up_proj|down_proj)")


def stored(model: Any, weights: Mapping[str, Tensor], *, prefixed: bool = True) -> dict[str, Tensor]:
    """Return all weights of a model of transformers under the names of the files that it was loaded from.

    Experts are separate where they were; Qwen1.5 to 3 have them so on the hub, and are always written so. Parts share
    their memory with ``weights``. ``prefixed``: keep the prefix that a folder with a vision tower gives its layers.
    """
    names = read_folder(Path(model.name_or_path)).keys()
    family, (theirs, ours) = FAMILIES[model.config.model_type], TEXT_PREFIX
    whole = not family.experts or (family.is_hybrid and names_fused({"model_type": family.text_type}, names))
    found = dict(weights if whole else _separate(weights))
    if prefixed and any(name.startswith(theirs) for name in names):
        return {re.sub(f"^{re.escape(ours)}", theirs, name): tensor for name, tensor in found.items()}
    return found


def _separate(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield each expert's three matrices in place of the two tensors of a layer."""
    for name, tensor in weights.items():
        experts = _EXPERTS.fullmatch(name)
        if experts is None:
            yield name, tensor
            continue
        for number, one in enumerate(tensor):
            place = f"{experts[1]}.{number}"
            if experts[2] == "down_proj":
                yield f"{place}.down_proj.weight", one
            else:
                gate, up = one.chunk(2)
                yield from ((f"{place}.gate_proj.weight", gate), (f"{place}.up_proj.weight", up))
