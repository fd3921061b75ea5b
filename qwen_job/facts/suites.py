"""Tasks of lm-eval in a folder: YAML files with a ``task:``, read without lm-eval and without running their code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qwen_job import strict_yaml
from qwen_job.atomic import read_limited

HARNESS = "lm-eval"
INSTALL = "pip install 'qwen-job[eval]'"
# The options of 'qwen-job evaluate' that decide which tasks are loaded, and whether a value follows.
CHECKED = {"--task": True, "--task-folder": True, "--few-shot": True, "--backend": True, "--run-code": False}
# A folder of tasks is read in full to know whether scores of it are outdated.
MOST_FILES = 20_000
# What lm-eval names tasks like; a path or an address is something else.
TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
# datasets' names for formats of files, in the place of a data set.
_FILE_FORMATS = ("arrow", "csv", "json", "parquet", "text")


class LocalTask(NamedTuple):
    """A task of a folder: the file that defines it, its data set on a hub, or the files that hold its rows."""

    file: Path
    data_set: str | None
    data_files: tuple[str, ...]


def tasks_of(folder: Path) -> dict[str, LocalTask]:
    """Return the tasks below a folder by name, as lm-eval finds them; files that are not YAML mappings are skipped."""
    found: dict[str, LocalTask] = {}
    for path in sorted(folder.rglob("*.yaml")):
        values = _plain(path)
        name = values.get("task")
        if isinstance(name, str) and re.match(TASK_NAME, name):
            found[name] = LocalTask(path, *_data(values))
    return found


def groups_of(folder: Path) -> set[str]:
    """Return the names of groups and tags below a folder."""
    found: set[str] = set()
    for path in folder.rglob("*.yaml"):
        values = _plain(path)
        tags = values.get("tag")
        found.update(one for one in (values.get("group"), *(tags if isinstance(tags, list) else [tags])) if one)
    return found


def missing_files(task: LocalTask, folder: Path) -> list[str]:
    """Return the data files of a task that do not exist; relative ones start at the folder of the suite."""
    local = [name for name in task.data_files if "://" not in name and "*" not in name]
    return [name for name in local if not (folder / name).exists()]


def _data(values: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    path, options = values.get("dataset_path"), values.get("dataset_kwargs")
    if not isinstance(path, str):
        return None, ()
    files = options.get("data_files") if isinstance(options, dict) else None
    return (None if path in _FILE_FORMATS else path), tuple(_names(files))


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _names(one)


def _plain(path: Path) -> dict[str, Any]:
    """Return a YAML mapping with what tags stand for left out: ``!function`` would import code."""
    try:
        text = read_limited(path, strict_yaml.MAX_BYTES).decode()
        strict_yaml.check(text)
        value = yaml.load(text, Loader=_Untagged)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


class _Untagged(yaml.SafeLoader):
    """Reads a value with a tag as None."""


def _nothing(*_: object) -> None:
    return None


_Untagged.add_constructor(None, _nothing)
