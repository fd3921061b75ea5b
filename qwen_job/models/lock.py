"""One worker at a time, also between nodes that share a file system, also after the holder was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_job.errors import EnvironmentFault

Progress = Callable[[str], None]

POLL_SECONDS = 0.2
LEASE_SECONDS = 60.0  # a lease not renewed for so long belongs to a dead process
_NO_FLOCK = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


@contextmanager
def exclusive(path: Path, progress: Progress | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` for the block; wait for as long as another live process holds it.

    Uses flock(2): the kernel releases it when its holder dies, and NFS carries it between hosts. Where the file
    system has no flock (Lustre without -o flock), a lease file renewed by a thread takes its place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise EnvironmentFault(f"{path.parent}: cannot be written ({error.strerror}); set model.cache_dir") from error
    try:
        if _flock(descriptor, path, progress):
            yield
        else:
            with _lease(path.with_suffix(".lease"), progress):
                yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, path: Path, progress: Progress | None) -> bool:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return False
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _whoami().encode(), 0)
            return True
        if not told and progress:
            progress(f"waiting for {_holder(path)}, who prepares {path.stem}")
        told = True
        time.sleep(POLL_SECONDS)


@contextmanager
def _lease(path: Path, progress: Progress | None) -> Iterator[None]:
    told = False
    while not _create(path):
        if not told and progress:
            progress(f"waiting for {_holder(path)}, who prepares {path.stem}")
        told = True
        if _age(path) > LEASE_SECONDS:
            path.unlink(missing_ok=True)
        else:
            time.sleep(POLL_SECONDS)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(LEASE_SECONDS / 6):
            os.utime(path)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    os.write(descriptor, _whoami().encode())
    os.close(descriptor)
    return True


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _whoami() -> str:
    return f"{socket.gethostname()} (process {os.getpid()})"


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"
