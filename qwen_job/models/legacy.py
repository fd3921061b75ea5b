"""pytorch_model*.bin as safetensors: the one place that unpickles, and only weights, and only with torch present."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_job.errors import EnvironmentFault, ModelError

from .files import CHUNK, read_json
from .qwen1 import is_computed
from .tensors import NewTensor, write_tensors

_DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}


def pickled_shards(folder: Path) -> list[Path]:
    """Return a folder's pytorch_model*.bin files, those its index names where there is one."""
    index = folder / "pytorch_model.bin.index.json"
    if not index.exists():
        return sorted(folder.glob("pytorch_model*.bin"))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index}: has no weight_map; fetch or copy it again")
    return [folder / name for name in sorted(set(map(str, weight_map.values())))]


def unpickle(shards: list[Path], folder: Path) -> list[Path]:
    """Write each .bin shard as a safetensors file into ``folder`` and return them; code in a pickle never runs."""
    try:
        import torch
    except ImportError:
        raise EnvironmentFault(
            f"{shards[0]}: reading a .bin checkpoint needs torch; run this inside the image, or fetch the safetensors"
        ) from None
    written = []
    for shard in shards:
        try:
            # Files from before torch 1.6 are no zip archives, and are read whole.
            state = torch.load(shard, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(shard))
        except Exception as error:  # torch raises a dozen kinds for a broken or hostile pickle
            reason = str(error).splitlines()[0]
            raise ModelError(f"{shard}: cannot be read as weights ({reason}); fetch it again") from error
        target = folder / f"{shard.stem}.safetensors"
        write_tensors(target, [_tensor(shard, name, value) for name, value in state.items() if not is_computed(name)])
        written.append(target)
    return written


def _tensor(shard: Path, name: str, value: Any) -> NewTensor:
    dtype = _DTYPES.get(str(getattr(value, "dtype", type(value))))
    if dtype is None:
        raise ModelError(f"{shard}: {name}: {getattr(value, 'dtype', type(value))} is no weight type known here")
    return NewTensor(name, dtype, tuple(value.shape), _pieces(value))


def _pieces(value: Any) -> Iterator[bytes]:
    import torch

    flat = value.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK].numpy().tobytes()
