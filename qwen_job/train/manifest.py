"""Which checkpoint is complete. Nothing here imports torch.

A checkpoint is a folder step-N with a manifest.json, written last, that lists every file with size and hash.
Without a matching manifest it does not exist.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from qwen_job.files import sync_file, write_atomically

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


class FileEntry(NamedTuple):
    """What the manifest knows of one file."""

    size: int
    sha256: str


class Checkpoint(NamedTuple):
    """One complete checkpoint."""

    step: int
    path: Path
    world_size: int
    zero_stage: int


def describe(path: Path) -> FileEntry:
    """Force a file to the disk and return its size and hash."""
    sync_file(path)
    return FileEntry(path.stat().st_size, file_hash(path))


def file_hash(path: Path) -> str:
    """Return a file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while block := content.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, *, step: int, world_size: int, zero_stage: int, files: dict[str, FileEntry]) -> None:
    """Declare ``folder`` complete; ``files`` maps paths relative to it."""
    content = {
        "version": 1,
        "step": step,
        "world_size": world_size,
        "zero_stage": zero_stage,
        "files": {name: entry._asdict() for name, entry in sorted(files.items())},
    }
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def check(folder: Path, *, hashes: bool = True) -> Checkpoint | str:
    """Return the checkpoint in ``folder``, or the reason why it is not complete."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: FileEntry(entry["size"], entry["sha256"]) for name, entry in content["files"].items()}
        found = Checkpoint(content["step"], folder, content["world_size"], content["zero_stage"])
    except FileNotFoundError:
        return "it has no manifest: its writing was cut short"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry.size:
            return f"{name} has {path.stat().st_size} bytes instead of {entry.size}"
    if hashes:
        # hashlib releases the interpreter lock, so threads do read in parallel.
        with ThreadPoolExecutor(8) as pool:
            for name, digest in zip(files, pool.map(lambda name: file_hash(folder / name), files), strict=True):
                if digest != files[name].sha256:
                    return f"{name} does not have the hash of its manifest"
    return found


def newest(checkpoints: Path, *, hashes: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint and, in words, why newer ones were passed over."""
    passed_over: list[str] = []
    for folder in reversed(_steps(checkpoints)):
        verdict = check(folder, hashes=hashes)
        if isinstance(verdict, Checkpoint):
            return verdict, passed_over
        passed_over.append(f"{folder.name} is passed over: {verdict}")
    return None, passed_over


def prune(checkpoints: Path, *, keep: int | None, keep_steps: Iterable[int] = ()) -> list[int]:
    """Delete all but the newest ``keep`` complete checkpoints and ``keep_steps``; returns what went.

    Incomplete ones older than the newest complete one go too. The manifest goes first, so that a deletion cut
    short leaves nothing that looks complete.
    """
    folders = _steps(checkpoints)
    complete = [folder for folder in folders if (folder / MANIFEST).is_file()]
    kept = {f"step-{step}" for step in keep_steps}
    kept |= {folder.name for folder in (complete[-keep:] if keep else complete)}
    newest_complete = complete[-1] if complete else None
    gone = []
    for folder in folders:
        if folder.name in kept or newest_complete is None or _number(folder) > _number(newest_complete):
            continue
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        gone.append(_number(folder))
    return gone


def _steps(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    folders = [path for path in checkpoints.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(folders, key=_number)


def _number(folder: Path) -> int:
    return int(folder.name[5:])
