"""Files and folders that are complete or absent, and a lock so that one process makes them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from qwen_job.atomic import open_regular, sync_file, sync_folder, write_atomically
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.lock import FileLock
from qwen_job.resources import user_cache

ELSEWHERE = (
    "free space or fix rights, or choose another folder (a job's are model.cache_dir and data.cache_dir, a download's "
    "--cache)"
)
CHUNK = 8 * 1024 * 1024  # bytes read at a time: bounds memory for files of any size

Notify = Callable[[str], None]  # called with a line of text from time to time


def cache_folder(chosen: Path | None = None) -> Path:
    """Return the folder of models in the ``chosen`` cache, else in the user's own."""
    return (chosen or user_cache()).expanduser() / "models"


def stays_below(path: str) -> bool:
    """Tell whether a relative path names something below the folder that it starts from."""
    return bool(path) and not path.startswith("/") and ".." not in PurePosixPath(path).parts


def chunks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file.

    Raises:
        ModelError: the file is shorter.
    """
    left = (path.stat().st_size if stop is None else stop) - start
    with open_regular(path) as file:
        file.seek(start)
        while left > 0:
            piece = file.read(min(CHUNK, left))
            if not piece:
                raise ModelError(f"{path}: ends {left} bytes early; copy or download it again")
            left -= len(piece)
            yield piece


def git_sha1_of(path: Path) -> str:
    """Return the SHA-1 of a file as a git blob."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    for piece in chunks(path):
        digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        EnvironmentFault: it cannot be written.
    """
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


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` if the block ends without an error.

    ``replace``: an existing ``target`` (a damaged one) is replaced at that moment.

    What a killed process left is removed first; the caller holds the lock of ``target``.
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
        old = target.with_name(f".{target.name}.old")
        if replace and target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        aside.replace(target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise EnvironmentFault(f"{target}: cannot be written ({error}); {ELSEWHERE}") from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def exclusive(path: Path, progress: Notify | None = None, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` for the block, on all nodes; report once whom it waits for.

    ``remove``: leave no lock file behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{path.parent}: cannot be written ({error.strerror}); {ELSEWHERE}") from error

    def waiting(holder: str) -> None:
        if progress:
            progress(f"waiting for {holder}, which is preparing {path.stem.removeprefix('.')}")

    with FileLock(path, waiting=waiting, remove=remove):
        yield
