"""Which files of a hub's data set belong to a split: by its README's ``configs``, else by the names of its files.

The rules are those of Hugging Face's documentation, "Structure your repository" and "Manual configuration"
(huggingface.co/docs/hub/datasets-data-files-configuration), which ModelScope's data sets follow too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from qwen_job import strict_yaml
from qwen_job.errors import DataError
from qwen_job.facts.data_names import SPLIT, DataName
from qwen_job.text import did_you_mean, visible

CARD = "README.md"
_TABLES = (".parquet",)
_TEXTS = (".json", ".jsonl", ".ndjson")
_PACKED = (".gz", ".zst", ".zstd")
# Settings of the hubs and of the library datasets, which hold no rows.
_SETTINGS = (
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json", "configuration.json", "state.json",
)  # fmt: skip
_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SHARD = r"(?P<split>\w[\w.-]*?)-\d+-of-\d+(?:-\w+)?\..+"
_MOST_SHOWN = 8
_NONE = ""  # in place of a split: files that belong to none


class Subset(NamedTuple):
    """One subset of a data set: a pattern of files for each of its splits, or the folder that it is in."""

    name: str
    default: bool
    patterns: tuple[tuple[str, str], ...]
    folder: str


class Chosen(NamedTuple):
    """The files of a split, and the data files that belong to no split and are left out."""

    files: list[str]
    left_out: list[str]


def choose(paths: Sequence[str], name: DataName, card: str) -> Chosen:
    """Return the files of a data set that ``name`` means, in the order of their paths.

    Args:
        paths: all files of the repository.
        name: the data set, and the part of it.
        card: the text of its README.md, empty without one.

    Raises:
        DataError: there is no such subset, split or file, or it is in a form that is not read; says what there is.
    """
    if name.files:
        splits = {SPLIT: [path for path in paths if _matches(path, name.files)]}
        split = SPLIT
    else:
        subsets = {one.name: one for one in subsets_of(card)}
        splits = _of_subset(paths, _subset_of(name, subsets)) if subsets else _of_folder(paths, name)
        split = _split_of(name, splits, subsets)
    files = sorted(_readable(splits[split], name, paths))
    _refuse_two_forms(files, name)
    return Chosen(files, splits.get(_NONE, []))


def _of_subset(paths: Sequence[str], subset: Subset) -> dict[str, list[str]]:
    """Return the files of each split of a declared subset."""
    if not subset.patterns:
        return _by_names([path for path in paths if path.startswith(subset.folder) and _form(path)])
    found: dict[str, list[str]] = {}
    for split, pattern in subset.patterns:
        known = found.setdefault(split, [])
        known += [path for path in paths if _matches(path, pattern) and path not in known]
    return found


def _of_folder(paths: Sequence[str], name: DataName) -> dict[str, list[str]]:
    """Return the files of each split where none is declared; a subset is then a folder."""
    below = [path for path in paths if path.startswith(f"{name.subset}/")] if name.subset else list(paths)
    if not below:
        raise DataError(f"{_shown(name)}: has no subset and no folder '{name.subset}'; {_here(paths)}")
    return _by_names(_readable(below, name, paths))


def _subset_of(name: DataName, subsets: Mapping[str, Subset]) -> Subset:
    names = ", ".join(subsets)
    if name.subset:
        if name.subset not in subsets:
            meant = did_you_mean(name.subset, subsets)
            raise DataError(f"{_shown(name)}: has no subset '{name.subset}'; its subsets: {names}{meant}")
        return subsets[name.subset]
    chosen = [one for one in subsets.values() if one.default or one.name == "default"]
    if not chosen and len(subsets) > 1:
        meant = name.of(name.split, SPLIT) if name.split in subsets else name.of(next(iter(subsets)), name.split)
        raise DataError(f"{_shown(name)}: has the subsets {names}; write one of them, e.g. {meant}")
    return (chosen or list(subsets.values()))[0]


def _split_of(name: DataName, splits: Mapping[str, object], subsets: Mapping[str, Subset]) -> str:
    wanted, known = name.split or SPLIT, [split for split in splits if split != _NONE]
    if wanted in known:
        return wanted
    words = f"its splits: {', '.join(known) or 'none'}"
    if wanted in subsets:
        words += f"; '{wanted}' is a subset: write {name.of(wanted, SPLIT)}"
    elif known and not name.split:
        words += f"; write one of them, e.g. {name.of(name.subset, known[0])}"
    raise DataError(f"{_shown(name)}: has no split '{wanted}'; {words}{did_you_mean(wanted, known)}")


def subsets_of(card: str) -> list[Subset]:
    """Return the subsets that a README.md declares in its front matter (``configs``), none without one.

    Raises:
        DataError: the front matter cannot be read.
    """
    if not (found := re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", card, re.DOTALL)):
        return []
    try:
        values = strict_yaml.loads(found[1])
    except ValueError as error:
        raise DataError(f"{CARD}: its front matter cannot be read ({visible(error, 200)}); name the files instead, "
                        "e.g. hf:owner/name/data/*.parquet") from None  # fmt: skip
    configs = values.get("configs") if isinstance(values, dict) else None
    return [_subset(one) for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []


def _subset(config: Mapping[str, Any]) -> Subset:
    folder = str(config.get("data_dir") or "").strip("./")
    folder = f"{folder}/" if folder else ""
    listed = config.get("data_files")
    entries = listed if isinstance(listed, list) else [] if listed is None else [listed]
    patterns: list[tuple[str, str]] = []
    for entry in entries:
        split, written = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (SPLIT, entry)
        for pattern in written if isinstance(written, list) else [written]:
            patterns.append((str(split or SPLIT), folder + str(pattern).removeprefix("./")))
    return Subset(str(config.get("config_name") or "default"), config.get("default") is True, tuple(patterns), folder)


def _by_names(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the files by the split in their names or, of none, in those of their folders; all are train without any.

    Files of no split are not used where others have one, as in the library datasets.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        found.setdefault(_split_in(path) or _NONE, []).append(path)
    return {SPLIT: found[_NONE]} if found.keys() == {_NONE} else found


def _split_in(path: str) -> str | None:
    *folders, file = PurePosixPath(path).parts
    if shard := re.fullmatch(_SHARD, file):
        return _WORDS.get(shard["split"].lower(), shard["split"])
    for part in (file, *reversed(folders)):
        words = re.split(r"[^a-z]+", part.lower())
        if split := next((_WORDS[word] for word in words if word in _WORDS), None):
            return split
    return None


def _readable(paths: Sequence[str], name: DataName, everything: Sequence[str]) -> list[str]:
    found = [path for path in paths if _form(path)]
    if found:
        return found
    script = next((path for path in everything if path == f"{name.name.partition('/')[2]}.py"), None)
    if not paths:
        raise DataError(f"{_shown(name)}: no file has that name; {_here(everything)}")
    if script:
        raise DataError(
            f"{_shown(name)}: needs the script {script}, and scripts are not run; {_here(paths)}. The hub may have "
            "converted it: revision: refs/convert/parquet"
        )
    raise DataError(
        f"{_shown(name)}: holds no JSON, JSON Lines or Parquet; {_here(paths)}. Convert it and give the path, or try "
        "the hub's own conversion: revision: refs/convert/parquet"
    )


def _form(path: str) -> str:
    """Return ``table`` or ``text`` for a file that can be read, empty for any other."""
    file = PurePosixPath(path)
    if file.name in _SETTINGS or any(part.startswith((".", "__")) for part in file.parts):
        return ""
    if file.suffix in _TABLES:
        return "table"
    plain = file.with_suffix("") if file.suffix in _PACKED else file
    return "text" if plain.suffix in _TEXTS else ""


def _refuse_two_forms(paths: Sequence[str], name: DataName) -> None:
    """Refuse files that may hold the same rows twice, in two forms."""
    by_form = {_form(path): path for path in reversed(paths)}
    pair = tuple(by_form.values()) if len(by_form) > 1 else ()
    stems: dict[str, str] = {}
    for path in paths:
        stem = re.sub(r"(\.(parquet|json|jsonl|ndjson|gz|zst|zstd))+$", "", path)
        pair = pair or ((stems[stem], path) if stem in stems else ())
        stems[stem] = path
    if pair:
        raise DataError(f"{_shown(name)}: {pair[0]} and {pair[1]} may hold the same rows in two forms; name the files, "
                        f"e.g. {name.of('', '')}/{pair[0]}")  # fmt: skip


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a path matches a pattern: * and ? do not match /, ** does; [...] as in a shell."""
    if pattern.rstrip("/") and path.startswith(pattern.rstrip("/") + "/"):
        return True  # a folder stands for all its files
    try:
        return re.fullmatch(_regex(pattern), path) is not None
    except re.error:  # such as [z-a]
        return path == pattern


def _regex(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def one(part: str) -> str:
        if part in known:
            return known[part]
        if part.startswith("[") and part.endswith("]") and len(part) > 2:
            inner = part[1:-1].replace("\\", r"\\")
            return f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        return re.escape(part)

    return "".join(map(one, parts))


def _here(paths: Sequence[str]) -> str:
    names = ", ".join(visible(path, 80) for path in sorted(paths)[:_MOST_SHOWN])
    more = f" and {len(paths) - _MOST_SHOWN:,} more" if len(paths) > _MOST_SHOWN else ""
    return f"its files: {names}{more}"


def _shown(name: DataName) -> str:
    return f"{name.of(name.subset, name.split)}/{name.files}" if name.files else name.of(name.subset, name.split)
