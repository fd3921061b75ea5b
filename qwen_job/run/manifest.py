"""Manifests: which checkpoints are complete. Nothing here imports torch.

A checkpoint is a folder step-N with a manifest.json, written last, that lists every file with its size and hash.
Without a matching manifest it is ignored.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from qwen_job.atomic import sha256_of, sync_file, write_atomically
from qwen_job.run.folder import CHECKPOINTS, MANIFEST, step_name, step_of

# DeepSpeed's file names for shards, and ours for the random state.
_OF_A_RANK = re.compile(r"(?:pp_rank|rng_state)_(\d+)")


class FileEntry(NamedTuple):
    """One file of a manifest."""

    size: int
    sha256: str


class Checkpoint(NamedTuple):
    """One complete checkpoint; ``expert_parallel_size``: ranks that shared the experts of a layer."""

    step: int
    path: Path
    world_size: int
    zero_stage: int
    expert_parallel_size: int = 1


def describe(path: Path) -> FileEntry:
    """Flush a file to disk and return its size and hash."""
    sync_file(path)
    return FileEntry(path.stat().st_size, sha256_of(path))


def write_manifest(
    folder: Path,
    *,
    step: int,
    world_size: int,
    zero_stage: int,
    files: dict[str, FileEntry],
    expert_parallel_size: int = 1,
) -> None:
    """Write the manifest that makes ``folder`` complete; the keys of ``files`` are paths relative to it."""
    content = {
        "version": 1,
        "step": step,
        "world_size": world_size,
        "zero_stage": zero_stage,
        "expert_parallel_size": expert_parallel_size,
        "files": {name: entry._asdict() for name, entry in sorted(files.items())},
    }
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def check(folder: Path, *, hashes: bool = True) -> Checkpoint | str:
    """Return the checkpoint in ``folder``, or the reason why it is incomplete."""
    try:
        content, files = _read(folder)
        split = content.get("expert_parallel_size", 1)
        found = Checkpoint(content["step"], folder, content["world_size"], content["zero_stage"], split)
    except FileNotFoundError:
        return "it has no manifest: its save was interrupted"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry.size:
            return f"{name} has {path.stat().st_size} bytes instead of {entry.size}"
    return (wrong_hash(folder) if hashes else None) or found


def wrong_hash(folder: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """Verify ``rank``'s share of a complete checkpoint's files; returns a message about the first damaged one.

    Each file is verified by one rank: a shard by the rank that wrote it, the others in turn.
    """
    _, files = _read(folder)
    mine = [name for place, name in enumerate(files) if _reader(name, place) % world_size == rank]
    # hashlib releases the GIL, so threads read in parallel.
    with ThreadPoolExecutor(8) as pool:
        digests = pool.map(lambda name: _hash_or_error(folder / name), mine)
        for name, digest in zip(mine, digests, strict=True):
            if isinstance(digest, OSError):
                return f"{name} cannot be read ({digest})"
            if digest != files[name].sha256:
                return f"{name} does not match the hash in its manifest"
    return None


def newest(
    checkpoints: Path, *, hashes: bool = True, refused: Mapping[str, str] | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint, and messages about newer ones that were skipped.

    ``refused`` maps the names of folders that are known to be damaged to the reason.
    """
    passed_over: list[str] = []
    for folder in reversed(_steps(checkpoints)):
        verdict = (refused or {}).get(folder.name) or check(folder, hashes=hashes)
        if isinstance(verdict, Checkpoint):
            return verdict, passed_over
        passed_over.append(f"{folder.name} is skipped: {verdict}")
    return None, passed_over


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint in ``run`` with a manifest, -1 without one.

    A cheap test of progress between attempts: it opens no file, so a damaged manifest still counts. The batch script
    has the same function in shell (templates/slurm/job.sbatch.j2).
    """
    home = run / CHECKPOINTS
    return max((_number(folder) for folder in _steps(home) if _has_text(folder / MANIFEST)), default=-1)


def _has_text(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def prune(checkpoints: Path, *, keep: int | None, keep_steps: Iterable[int] = ()) -> list[int]:
    """Delete all but the newest ``keep`` complete checkpoints and ``keep_steps``; returns the deleted ones.

    Incomplete ones older than the newest complete one are deleted too. Manifests are deleted first, so that an
    interrupted deletion leaves nothing that looks complete.
    """
    folders = _steps(checkpoints)
    complete = [folder for folder in folders if isinstance(check(folder, hashes=False), Checkpoint)]
    kept = {step_name(step) for step in keep_steps}
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


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, FileEntry]]:
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return content, {name: FileEntry(entry["size"], entry["sha256"]) for name, entry in content["files"].items()}


def _reader(name: str, place: int) -> int:
    found = _OF_A_RANK.search(name)
    return int(found[1]) if found else place


def _hash_or_error(path: Path) -> str | OSError:
    try:
        return sha256_of(path)
    except OSError as error:
        return error


def _steps(checkpoints: Path) -> list[Path]:
    if not checkpoints.is_dir():
        return []
    folders = [path for path in checkpoints.glob("step-*") if step_of(path.name) is not None and path.is_dir()]
    return sorted(folders, key=_number)


def _number(folder: Path) -> int:
    return step_of(folder.name) or 0
