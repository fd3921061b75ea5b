"""Files that are either there in full or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.files import sync_file, sync_folder, write_atomically

ELSEWHERE = "free space or fix rights, or choose another folder (a job's is model.cache_dir, a download's --cache)"
CHUNK = 8 * 1024 * 1024  # bytes read at a time: bounds memory for files of any size


def chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file; ModelError when it is shorter."""
    left = (path.stat().st_size if stop is None else stop) - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise ModelError(f"{path}: ends {left} bytes early; copy or download it again")
            left -= len(piece)
            yield piece


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file of any size."""
    digest = hashlib.sha256()
    for piece in chunks(path):
        digest.update(piece)
    return digest.hexdigest()


def exists(path: Path) -> bool:
    """Tell whether ``path`` exists as far as can be seen; whoever uses it says what is wrong with its folder."""
    try:
        return path.exists()
    except OSError:
        return False


def git_sha1_of(path: Path) -> str:
    """Return the name that git gives a file's content as a blob."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    for piece in chunks(path):
        digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside, sync it and rename it into place."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written ({error.strerror}); free space or fix rights") from error


def to_json(value: object) -> str:
    """Return readable JSON with a fixed layout, keys in the order given."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_bytes(path, to_json(value).encode())


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object; ModelError when the file is missing, broken or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: does not exist; is {path.parent} a model folder?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds no JSON object; copy or download it again")
    return value


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` when the block ends without an error.

    What a killed process left behind is removed first; the caller holds the lock of ``target``.
    """
    aside = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file():
                sync_file(path)
        sync_folder(aside)
        aside.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise EnvironmentFault(f"{target}: cannot be written ({error}); {ELSEWHERE}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
