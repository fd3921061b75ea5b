"""What to train on and how to cut it: the ``data`` section of train.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.errors import DataError
from qwen_job.limits import MAX_LENGTH, MAX_WEIGHT, MIN_LENGTH

FORMATS = ("auto", "reference", "sharegpt", "messages", "alpaca", "query_response")
LONG_SAMPLES = ("truncate", "drop", "split")
MASKS = ("assistant", "reference")
TURN_ORDERS = ("strict", "reference", "join")


_CHOICES = {"format": FORMATS, "long_samples": LONG_SAMPLES, "mask": MASKS, "turn_order": TURN_ORDERS}


@dataclass(frozen=True)
class DataFile:
    """One file of conversations. ``weight`` 2.0 shows each sample twice an epoch, 0.5 every other one."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class DataSpec:
    """Everything that decides which tokens are trained. ``max_length`` counts tokens of one packed row.

    ``eval_split`` holds out that fraction of the training samples when ``eval`` is empty. Raises
    :class:`~qwen_job.errors.DataError` naming the field when a value cannot be meant.
    """

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] = ()
    eval_split: float = 0.0
    format: str = "auto"
    system_prompt: str = SYSTEM_PROMPT
    max_length: int = MAX_LENGTH
    long_samples: str = "truncate"
    packing: bool = True
    mask: str = "assistant"
    turn_order: str = "strict"
    ignore_keys: tuple[str, ...] = ()
    cache_dir: Path | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for field, known in _CHOICES.items():
            if getattr(self, field) not in known:
                _refuse(field, f"is {getattr(self, field)!r}; write one of {', '.join(known)}")
        if not self.train:
            _refuse("train", "names no file; give at least one")
        if not 0.0 <= self.eval_split < 1.0:
            _refuse("eval_split", f"is {self.eval_split}; write a fraction from 0 to below 1")
        if self.max_length < MIN_LENGTH:
            _refuse("max_length", f"is {self.max_length}; the ChatML frame alone needs {MIN_LENGTH}: write more")
        for file in (*self.train, *self.eval):
            if not 0.0 < file.weight <= MAX_WEIGHT:
                _refuse("weight", f"of {file.path} is {file.weight}; write a number above 0, up to {MAX_WEIGHT:g}")

    @classmethod
    def from_dict(cls, section: Mapping[str, Any]) -> DataSpec:
        """Read train.yaml's ``data`` section; an unknown key or a wrong type is a DataError, not a guess."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(section) - known)
        if unknown:
            _refuse(unknown[0], f"is not known here; the keys are {', '.join(sorted(known))}")
        if "train" not in section:
            _refuse("train", "is missing; list the files to train on")
        values: dict[str, Any] = {key: value for key, value in section.items() if value is not None}
        values["train"] = _files("train", section["train"])
        values["eval"] = _files("eval", section.get("eval") or [])
        for key, types in _TYPES.items():
            if key in values and (not isinstance(values[key], types) or _is_stray_bool(values[key], types)):
                _refuse(key, f"is {values[key]!r}; write a {types[0].__name__}")
        keys = values.get("ignore_keys", [])
        if not isinstance(keys, (list, tuple)) or not all(isinstance(key, str) for key in keys):
            _refuse("ignore_keys", f"is {keys!r}; write a list of keys")
        values["ignore_keys"] = tuple(keys)
        if "cache_dir" in values:
            values["cache_dir"] = Path(values["cache_dir"])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain values; :meth:`from_dict` reads it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for split in ("train", "eval"):
            values[split] = [{"path": str(file.path), "weight": file.weight} for file in values[split]]
        values["ignore_keys"] = list(self.ignore_keys)
        return values | {"cache_dir": None if self.cache_dir is None else str(self.cache_dir)}


_TYPES: dict[str, tuple[type, ...]] = {
    "eval_split": (float, int),
    "format": (str,),
    "system_prompt": (str,),
    "max_length": (int,),
    "long_samples": (str,),
    "packing": (bool,),
    "mask": (str,),
    "turn_order": (str,),
    "cache_dir": (str, Path),
    "num_workers": (int,),
}


def _is_stray_bool(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, bool) and bool not in types


def _refuse(field: str, message: str) -> NoReturn:
    raise DataError(f"data.{field}: {message}")


def _files(field: str, entries: object) -> tuple[DataFile, ...]:
    if not isinstance(entries, (list, tuple)):
        raise DataError(f"data.{field}: is {entries!r}; write a list of {{path, weight}}")
    return tuple(_file(f"{field}[{number}]", entry) for number, entry in enumerate(entries))


def _file(field: str, entry: object) -> DataFile:
    if isinstance(entry, (str, Path)):
        return DataFile(Path(entry))
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), (str, Path)):
        raise DataError(f"data.{field}: is {entry!r}; write {{path: FILE, weight: 1.0}}")
    if set(entry) - {"path", "weight"}:
        _refuse(field, f"has {sorted(set(entry) - {'path', 'weight'})}; it takes path and weight only")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        _refuse(field, f"has weight {weight!r}; write a number")
    return DataFile(Path(entry["path"]), float(weight))
