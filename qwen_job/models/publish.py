"""What of a trained model is published: the files of a finished export, and nothing else in its folder."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qwen_job import strict_yaml
from qwen_job.atomic import read_limited
from qwen_job.errors import ModelError
from qwen_job.models.completeness import check_folder
from qwen_job.run.folder import RunFolder
from qwen_job.storage import stays_below

_CARD = "README.md"
_PUBLISHED = (
    "*.json", "*.safetensors", "*.jinja", "*.tiktoken", "merges.txt", "vocab.txt", "tokenizer.model",
    "LICENSE*", "NOTICE*", _CARD,
)  # fmt: skip
_FOLDERS = ("additional_chat_templates",)


class Publication(NamedTuple):
    """A folder, the files of it that go up (name -> bytes), the names that do not, and the model card's head."""

    folder: Path
    files: dict[str, int]
    left_out: list[str]
    head: dict[str, Any]


def publication(path: Path) -> Publication:
    """Return what a push of a run or a model folder would publish.

    Raises:
        ModelError: the run has not finished, or there is no complete model in the folder.
    """
    folder = _finished(path)
    check_folder(folder)
    files, left_out = {}, []
    for found in sorted(folder.rglob("*")):
        name = found.relative_to(folder).as_posix()
        if found.is_dir():
            continue
        if _is_published(name) and found.is_file() and stays_below(name):
            files[name] = found.stat().st_size
        else:
            left_out.append(name)
    return Publication(folder, files, left_out, _head(folder / _CARD))


def _finished(path: Path) -> Path:
    """Return the model's folder of a finished run, or ``path``, if it is not part of one that has not finished."""
    if not path.is_dir():
        raise ModelError(f"{path}: no such folder; give a finished run's folder or a model's")
    run = RunFolder(path)
    if run.train.is_file():
        folder = run.model
    else:
        folder, run = path, RunFolder(path.absolute().parent)
        if folder.absolute() != run.model.absolute() or not run.train.is_file():
            return folder
    if not run.done.is_file():
        raise ModelError(f"{run.path}: the run has not finished (no done.json): push its model when it has")
    return folder


def _is_published(name: str) -> bool:
    above, _, last = name.rpartition("/")
    return above in ("", *_FOLDERS) and not last.startswith(".") and any(fnmatch(last, one) for one in _PUBLISHED)


def _head(card: Path) -> dict[str, Any]:
    """Return the values at the head of a model card, empty without any."""
    try:
        text = read_limited(card, strict_yaml.MAX_BYTES).decode()
        head = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
        value = strict_yaml.loads(head)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
