"""A lock across the cluster that survives a killed holder: one process does the work, the others wait.

If flock works (local disks, NFSv4, Lustre with flock), the kernel releases the lock when its holder dies. If flock is
missing or does not reach other machines, the holder's heartbeat in the file decides: the lock is free once the
heartbeat has not changed for ``stale_after`` seconds on the watcher's clock. Clocks of machines are never compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from qwen_job.errors import EnvironmentFault


class FileLock:
    """``with FileLock(path, done) as held``: ``held`` is False if ``done()`` became true while waiting.

    ``waiting`` is called once, with the holder's host and process, if there is a holder to wait for. With ``remove``,
    the file is deleted at the end of the block; a killed holder leaves it.
    """

    def __init__(
        self,
        path: Path,
        done: Callable[[], bool] = lambda: False,
        *,
        waiting: Callable[[str], None] | None = None,
        remove: bool = False,
        stale_after: float = 60.0,
        poll: float = 0.25,
    ) -> None:
        self._path, self._done, self._waiting = path, done, waiting
        self._remove, self._stale_after, self._poll = remove, stale_after, poll
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._file = -1
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._seen: tuple[bytes, float] = (b"", 0.0)

    def __enter__(self) -> bool:
        while not self._done():
            if self._try():
                if self._done():  # it may have changed since the check above
                    break
                self._heart = threading.Thread(target=self._beat_on, daemon=True)
                self._heart.start()
                return True
            if self._waiting:
                self._waiting(_holder(self._path))
                self._waiting = None
            time.sleep(self._poll)
        self._release()
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._file < 0:
            return
        self._stop.set()
        if self._heart:
            self._heart.join()
        with contextlib.suppress(OSError):
            if self._remove and self._is_at_its_path(self._file):
                self._path.unlink()  # while held: waiting processes then see that the path has changed
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file = -1

    def _try(self) -> bool:
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise EnvironmentFault(
                f"{self._path}: cannot be opened to lock: {error.strerror}; make it writable or choose another folder"
            ) from error
        reliable = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            reliable = False  # this file system has no flock
        if (
            self._held_elsewhere(os.pread(file, 4096, 0), reliable)
            or not self._is_at_its_path(file)
            or not self._claim(file, reliable)
        ):
            os.close(file)
            return False
        return True

    def _is_at_its_path(self, file: int) -> bool:
        """Return whether the path still leads to this file; reopen it, because NFS may cache a deleted name."""
        try:
            other = os.open(self._path, os.O_RDONLY)
        except OSError:
            return False
        try:
            return os.path.sameopenfile(file, other)
        finally:
            os.close(other)

    def _held_elsewhere(self, content: bytes, reliable: bool) -> bool:
        try:
            owner = json.loads(content)
        except ValueError:
            return False
        if reliable and owner.get("host") == _host():
            return False  # its process has ended, otherwise flock would have failed
        if content != self._seen[0]:
            self._seen = (content, time.monotonic())
            return True
        return time.monotonic() - self._seen[1] < self._stale_after

    def _claim(self, file: int, reliable: bool) -> bool:
        self._file = file
        self._beat()
        if not reliable:
            # Two watchers may find it stale at the same time: the one whose name remains after a pause has the lock.
            time.sleep(4 * self._poll)
            if self._token.encode() not in os.pread(file, 4096, 0) or not self._is_at_its_path(file):
                self._file = -1
                return False
        return True

    def _beat(self) -> None:
        self._beats += 1
        owner = {"host": _host(), "pid": os.getpid(), "token": self._token, "beats": self._beats}
        text = json.dumps(owner).encode()
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))
        os.fsync(self._file)

    def _beat_on(self) -> None:
        while not self._stop.wait(self._stale_after / 6):
            with contextlib.suppress(OSError):
                self._beat()


def _host() -> str:
    """Return the name of this machine and its boot: a holder from before a reboot does not count as ours."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _holder(path: Path) -> str:
    """Return the host and process that hold the lock, as written in the file."""
    try:
        owner = json.loads(path.read_bytes())
        return f"{owner['host'].split()[0]} (process {owner['pid']})"
    except (OSError, ValueError, KeyError):
        return "another process"  # it has not written its name yet
