"""Find and read a facts file by the name or an alias of what it describes; only that file is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from qwen_job.errors import JobError
from qwen_job.strict_yaml import Loader
from qwen_job.text import nearest

_ALTERNATIVE = {
    "GPU": "or write its figures: {{name: {}, memory_gib: N, compute_capability: N.N}}",
    "model": "or name a local folder that has a config.json",
}

# GPUs that exist and have no file: no misspelling of one that has.
_OTHER_GPUS = (
    r"(NVIDIA |GeForce |Tesla |Quadro |TITAN)*((GB?[23]00|B[123]00|A(2|10G?|16|30|40|[2456]000)|L4|L40|T4|P(4|40|100)"
    r"|K80|MI\d+X?|[2345]0[5-9]0)(\b|-|$)|RTX|GTX|Ascend|TITAN|Gaudi)"
)


class UnknownName(JobError):
    """No facts file describes a GPU or model of this name."""


def find(name: str, folders: Sequence[Path], kind: str) -> Path:
    """Return the file that describes ``name``; files of a similar name are tried first, so few are read.

    Raises:
        UnknownName: no file has the name; suggests similar names.
    """
    wanted = str(name).strip().lower()
    stem = wanted.rsplit("/", 1)[-1]
    # No path is made of the name itself, which may be longer than a file's name can be.
    # An alias is mostly the beginning of its file's name, or the other way round: those files come first.
    paths = [path for folder in folders for path in sorted(folder.glob("*.yaml"))]
    same = [path for path in paths if path.stem == stem]
    near = [path for path in paths if stem and (path.stem.startswith(stem) or stem.startswith(path.stem))]
    for path in dict.fromkeys(same + near + paths):
        if wanted in _declared(path, kind):
            return path
    raise UnknownName(_unknown(name, kind, sorted({str(read_facts(path)["name"]) for path in paths})))


def _declared(path: Path, kind: str) -> list[str]:
    """Return every name of a file in lower case, for models also without the owner."""
    values = read_facts(path)
    names = [str(values.get("name", path.stem)), *map(str, values.get("aliases") or ())]
    if kind == "model":
        names += [name.rsplit("/", 1)[-1] for name in names]
    return [name.lower() for name in names]


def _unknown(name: str, kind: str, known: Sequence[str]) -> str:
    alternative = _ALTERNATIVE[kind].format(name)
    if kind == "GPU" and re.match(_OTHER_GPUS, name, re.IGNORECASE):
        return f"GPU {name!r} has no file with its figures; known: {', '.join(known)} ({alternative})"
    near = nearest(name, known, 3)
    near += [entry for entry in known if name.lower() in entry.lower() and entry not in near]
    every = "'qwen-job docs models' lists all" if kind == "model" else f"known: {', '.join(known)}"
    hint = f"did you mean {', '.join(near[:3])}?" if near else every
    return f"{kind} {name!r} is not known: {hint} ({alternative})"


def read_facts(path: Path) -> Mapping[str, Any]:
    """Return the content of a facts file.

    Raises:
        JobError: it cannot be read.
    """
    try:
        stat = path.stat()
        return _parsed(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


@lru_cache(maxsize=256)
def _parsed(path: Path, *_signature: int) -> Mapping[str, Any]:
    """Read a file, cached until it changes: every run of a sweep needs the same files."""
    values = yaml.load(path.read_text(encoding="utf-8"), Loader)
    if not isinstance(values, dict):
        raise JobError(f"{path}: not a mapping of names to values")
    return MappingProxyType(values)
