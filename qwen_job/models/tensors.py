"""Read and write safetensors files as raw bytes, without torch and without a whole file in memory.

Format: 8 bytes little-endian length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_job import strict_json
from qwen_job.atomic import open_regular
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_files import exists, member, read_json
from qwen_job.facts.weights import shown
from qwen_job.storage import chunks

ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
# The types of weights that can be trained; the others belong to quantized models.
FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_RANK = 8
_MAX_HEADER = 16 * 2**20  # ten thousand tensors take 1.5 MB
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor in bytes [start, stop) of a file: row-major, ``dtype`` by its name in safetensors."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def rows(self, first: int, stop: int) -> Tensor:
        """Return rows [first, stop) of dimension 0, without reading anything."""
        row = self.nbytes // self.shape[0]
        return Tensor(
            self.path,
            self.name,
            self.dtype,
            (stop - first, *self.shape[1:]),
            self.start + first * row,
            self.start + stop * row,
        )

    def read(self) -> Iterator[bytes]:
        """Yield the tensor's bytes in pieces of bounded size."""
        return chunks(self.path, self.start, self.stop)


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: the bytes of its sources, concatenated."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file in the order of their bytes.

    Raises:
        ModelError: the file is missing, truncated or damaged.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            header = strict_json.loads(file.read(length).decode()) if length <= min(_MAX_HEADER, size) else None
    except FileNotFoundError:
        raise ModelError(f"{path}: does not exist; the model folder is incomplete: fetch or copy it again") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: has no safetensors header ({error}); fetch or copy it again") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: is not a safetensors file{_git_lfs(prefix)}; fetch or copy it again")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: __metadata__: expected names and texts; fetch the file again")
    tensors = [_entry(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.stop))
    _assert_contiguous(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _git_lfs(prefix: bytes) -> str:
    return " but a git-lfs pointer (cloned without git-lfs)" if prefix == b"version " else ""


def _entry(path: Path, name: str, entry: object, base: int) -> Tensor:
    """Check one entry of a header: {dtype: one of ITEM_BYTES, shape: [sizes], data_offsets: [start, stop]}."""
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    for key, value, right in (
        ("dtype", dtype, isinstance(dtype, str) and dtype in ITEM_BYTES),
        ("shape", shape, _are_sizes(shape)),
        ("data_offsets", offsets, _are_sizes(offsets) and len(offsets) == 2),
    ):
        if not right:
            raise ModelError(f"{path}: {name}: {key}: header entry is broken ({shown(value)}); fetch the file again")
    tensor = Tensor(path, name, dtype, tuple(shape), base + offsets[0], base + offsets[1])
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if expected != tensor.nbytes:
        raise ModelError(f"{path}: {name}: {tensor.nbytes} bytes where {shown(shape)} {dtype} takes {expected}")
    return tensor


def _are_sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_RANK
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )


def _assert_contiguous(path: Path, tensors: list[Tensor], base: int, size: int) -> None:
    end = base
    for tensor in tensors:
        if tensor.start != end:
            raise ModelError(f"{path}: {tensor.name}: does not follow the tensor before it; fetch the file again")
        end = tensor.stop
    if end != size:
        raise ModelError(f"{path}: is {size} bytes long where its header says {end}; fetch or copy it again")


def write_tensors(path: Path, tensors: Iterable[NewTensor]) -> None:
    """Write a safetensors file, a piece at a time, and sync it; the caller renames its folder into place."""
    entries = list(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in entries:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data aligned to 8 bytes
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in entries:
                written = sum(file.write(piece) for piece in tensor.pieces)
                if written != tensor.nbytes:
                    raise ModelError(f"{tensor.name}: {written} bytes were written instead of {tensor.nbytes}")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror}); free space or fix rights") from error


def shards(folder: Path) -> list[Path]:
    """Return a model folder's safetensors files: model.safetensors, else those in the index, else all.

    Raises:
        ModelError: the index is broken, or names a file outside the folder.
    """
    if exists(single := member(folder, "model.safetensors")):
        return [single]  # transformers also prefers it to an index
    if exists(index := member(folder, INDEX)):
        return indexed(folder, index)
    return [member(folder, path.name) for path in sorted(folder.glob("*.safetensors"))]


def indexed(folder: Path, index: Path) -> list[Path]:
    """Return the weight files that an index names, each once.

    Raises:
        ModelError: as :func:`shards`.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map; fetch or copy it again")
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise ModelError(f"{index}: weight_map: {name}: expected a file name, found {shown(file)}")
    return [member(folder, name, index) for name in sorted(set(weight_map.values()))]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a model folder.

    Raises:
        ModelError: a shard is missing, damaged, or repeats a name.
    """
    tensors: dict[str, Tensor] = {}
    for path in shards(folder):
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise ModelError(f"{path}: {name} is also in {tensors[name].path.name}; keep one of the two")
            tensors[name] = tensor
    return tensors
