"""One process at a time makes a model folder, also between nodes that share a file system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_job.errors import EnvironmentFault
from qwen_job.lock import FileLock
from qwen_job.models.storage import ELSEWHERE

Progress = Callable[[str], None]


@contextmanager
def exclusive(path: Path, progress: Progress | None = None, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock file ``path`` for the block; wait, and say so once, while another live process holds it.

    ``remove``: leave no lock file behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{path.parent}: cannot be written ({error.strerror}); {ELSEWHERE}") from error

    def waiting(holder: str) -> None:
        if progress:
            progress(f"waiting for {holder}, who prepares {path.stem.removeprefix('.')}")

    with FileLock(path, waiting=waiting, remove=remove):
        yield
