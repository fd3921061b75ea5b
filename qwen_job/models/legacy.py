"""Convert pytorch_model*.bin to safetensors: the only module that unpickles, weights only, with torch.

Before torch reads a file, its pickle is examined without running it: it may only build a dict of plain tensors. The
size of the result is checked before it is copied, because a view can repeat one number a billion times.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from qwen_job.atomic import open_regular
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_files import exists, member
from qwen_job.models.qwen1 import is_computed
from qwen_job.models.tensors import NewTensor, indexed, write_tensors
from qwen_job.storage import CHUNK

_DTYPES = {"torch.float64": "F64", "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
INDEX = "pytorch_model.bin.index.json"
# The names that torch.save uses for a dict of plain tensors.
_HARMLESS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch [A-Z]\w*Storage"
    r"|torch\.storage (Untyped|Typed)Storage|torch (bfloat16|bool|u?int\d+|float\d+)|torch Size"
)
_MAX_PICKLE = 32 * 2**20  # without the data: ten thousand tensors take 2 MB
_TOO_LARGE = "its description of the weights is too large"
_MAX_OPCODES = 4_000_000
_LARGER = 4  # times the file: tied weights are written once in .bin and twice in safetensors


def pickled_shards(folder: Path) -> list[Path]:
    """Return a folder's pytorch_model*.bin files: the single one, else those in its index, else all.

    Raises:
        ModelError: the index is broken, or names a file outside the folder.
    """
    if exists(single := member(folder, "pytorch_model.bin")):
        return [single]
    if exists(index := member(folder, INDEX)):
        return indexed(folder, index)
    return [member(folder, path.name) for path in sorted(folder.glob("pytorch_model*.bin"))]


def unpickle(shards: list[Path], folder: Path) -> list[Path]:
    """Write each .bin shard as a safetensors file into ``folder`` and return them; no code in a pickle is run."""
    try:
        import torch
    except ImportError:
        raise EnvironmentFault(
            f"{shards[0]}: reading a .bin checkpoint needs torch; run this inside the image, or fetch the safetensors"
        ) from None
    written = []
    for shard in shards:
        try:
            zipped = check_pickle(shard)
            # Files from before torch 1.6 are not zip archives, and are read whole.
            state = torch.load(shard, map_location="cpu", weights_only=True, mmap=zipped)
        except FileNotFoundError:
            raise ModelError(f"{shard}: does not exist; fetch or copy the missing shard") from None
        except Exception as error:  # torch raises a dozen classes for a broken or hostile pickle
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ModelError(f"{shard}: cannot be read as weights ({reason}); fetch it again") from error
        target = folder / f"{shard.stem}.safetensors"
        write_tensors(target, _tensors(shard, state))
        written.append(target)
    return written


def check_pickle(path: Path) -> bool:
    """Examine a .bin file's pickles without running them; True for a zip archive, False for the older layout.

    Raises:
        ValueError: it is damaged, compressed, or builds anything but plain tensors.
        OSError: it is missing or cannot be read.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            head = BytesIO(file.read(_MAX_PICKLE))
            for _ in range(5):  # magic number, protocol, system, weights, names of storages; their bytes follow
                _walk(head)
            return False
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                    raise ValueError(f"{entry.filename[:80]!r} in it is compressed, which torch never does")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it is a zip archive without a data.pkl")
            if pickles[0].file_size > _MAX_PICKLE:
                raise ValueError(_TOO_LARGE)
            _walk(BytesIO(archive.read(pickles[0])))
        return True


def _walk(pickled: BytesIO) -> None:
    """Read one pickle's opcodes; refuse any that could build something other than a dict of plain tensors."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _MAX_OPCODES:
            raise ValueError(_TOO_LARGE)
        if opcode.name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument)):
            raise ValueError(f"it asks for {str(argument).replace(' ', '.')[:80]}, which is not a weight")
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"):
            raise ValueError(f"it holds {opcode.name}, which torch.save never writes for weights")


def _tensors(shard: Path, state: object) -> list[NewTensor]:
    if isinstance(state, Mapping) and not state:
        raise ModelError(f"{shard}: holds no tensors; save model.state_dict()")
    if not isinstance(state, Mapping):
        raise ModelError(f"{shard}: holds a {type(state).__name__}, not a dict of tensors; save model.state_dict()")
    tensors = [_tensor(shard, name, value) for name, value in state.items() if not is_computed(str(name))]
    total, packed = sum(tensor.nbytes for tensor in tensors), shard.stat().st_size
    if total > _LARGER * packed:
        raise ModelError(f"{shard}: {packed:,} bytes would become {total:,}; it repeats data; fetch it again")
    return tensors


def _tensor(shard: Path, name: object, value: Any) -> NewTensor:
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        kind = type(value).__name__
        raise ModelError(f"{shard}: {str(name)[:80]}: is {kind}, not a tensor; save only model.state_dict()")
    dtype = _DTYPES.get(str(value.dtype))
    if dtype is None or value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = str(value.dtype) if dtype is None else "not a dense tensor"
        raise ModelError(f"{shard}: {name}: {kind} is not a supported weight type (quantized models are not supported)")
    return NewTensor(name, dtype, tuple(value.shape), _pieces(value))


def _pieces(value: Any) -> Iterator[bytes]:
    import torch

    flat = value.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK].numpy().tobytes()
