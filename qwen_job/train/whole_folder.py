"""``train.export: original``: the vision-language folder that training started from, with trained text weights in it.

- ``refuse_without_whole``: before the first step, where the folder holds no more than the text model
- ``write_whole_folder``: a copy whose text weights are replaced in place; every other byte of every file stays
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from qwen_job.errors import ModelError
from qwen_job.facts.families import family_of
from qwen_job.facts.model_files import read_config, read_json
from qwen_job.facts.weights import LEFT_OUT
from qwen_job.models.generation import stops_of
from qwen_job.models.template_files import write_template
from qwen_job.models.tensors import Tensor, read_folder
from qwen_job.storage import write_json

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_HEAD = "lm_head.weight"
_GENERATION = "generation_config.json"


def refuse_without_whole(source: Path) -> None:
    """Refuse a folder that holds no more than the text model.

    Raises:
        ModelError: says what to write.
    """
    if family_of(read_config(source)).whole is None:
        raise ModelError(
            f"{source}: train.export: original needs a vision-language folder, and this is a text model's; write text"
        )


def write_whole_folder(
    source: Path, trained: Path, folder: Path, template: str, system_prompt: str | None
) -> list[str]:
    """Copy ``source`` into the new ``folder``, and replace its text weights by those in ``trained``; returns notes.

    ``trained``: a folder of safetensors with the names of ``source``. Weights keep the types that they have in
    ``source``. Of the other files, two can differ: the chat template, where training used another, and the IDs that end
    an answer, where those of training are missing.

    Raises:
        ModelError: the two folders do not hold the same text weights.
    """
    shutil.copytree(
        source, folder, copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True
    )
    old, new = read_folder(folder), read_folder(trained)
    if _HEAD in old and _HEAD not in new:  # a tied head that is stored as well
        new[_HEAD] = next(tensor for name, tensor in new.items() if name.endswith("embed_tokens.weight"))
    _assert_same(source, old, new)
    for path in {tensor.path for tensor in old.values()}:
        _replace(path, [(old[name], new[name]) for name in new if old[name].path == path])
    notes = write_template(source, folder, template, system_prompt)
    return [*notes, *_complete_stops(source, folder)]


def _assert_same(source: Path, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    text = {name for name in old if not name.startswith(tuple(LEFT_OUT))}
    if differing := sorted(text ^ new.keys()):
        raise ModelError(
            f"{source}: {', '.join(differing[:3])}: in the folder or trained, not both; write train.export: text"
        )
    for name, tensor in new.items():
        if old[name].shape != tensor.shape:
            raise ModelError(f"{source}: {name}: has shape {old[name].shape}, and {tensor.shape} was trained")


def _replace(path: Path, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    with path.open("r+b") as file:
        for old, new in pairs:
            file.seek(old.start)
            for piece in _pieces(old, new):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _pieces(old: Tensor, new: Tensor) -> Iterable[bytes]:
    """Return the bytes of ``new`` in the type of ``old``; one row of dimension 0 at a time where types differ."""
    if old.dtype == new.dtype:
        return new.read()
    return (_cast(new.rows(row, row + 1), old.dtype) for row in range(new.shape[0]))


def _cast(tensor: Tensor, dtype: str) -> bytes:
    values = torch.frombuffer(bytearray(b"".join(tensor.read())), dtype=_TYPES[tensor.dtype])
    return values.to(_TYPES[dtype]).view(torch.uint8).numpy().tobytes()


def _complete_stops(source: Path, folder: Path) -> list[str]:
    """Add the IDs that end an answer to generation_config.json where one is missing: base models do not name them."""
    path = folder / _GENERATION
    values = read_json(path) if path.is_file() else {}
    named = values.get("eos_token_id")
    stops = stops_of(source)
    if set(stops) <= set(named if isinstance(named, list) else [named]):
        return []
    write_json(path, {**values, "eos_token_id": stops})
    return [f"{_GENERATION}: eos_token_id: is {stops} in model/, as in training"]
