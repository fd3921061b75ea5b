"""One process of the cluster does the work, the others wait: a lock that survives a killed holder.

Where flock works (local disks, NFSv4, Lustre with flock) the kernel frees it when its holder dies. Where it
does not reach other machines or is missing, the holder's heartbeat inside the file decides: a beat that
stands still for ``stale_after`` seconds of the watcher's own clock belongs to nobody. Clocks of machines are
never compared.
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
    """``with FileLock(path, done) as held``: ``held`` is False when ``done()`` became true while waiting.

    ``waiting`` is called once, with the holder's host and process, when there is somebody to wait for. With
    ``remove`` the file goes with its holder, at the end of the block; a killed one leaves it.
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
                if self._done():  # since it was asked above
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
                self._path.unlink()  # while it is held: whoever waits for it sees that it is not at its path
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
        """Tell whether others, too, find this file; opened anew, because NFS may remember a name that is gone."""
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
            return False  # its process is gone, or flock would not have been given to us
        if content != self._seen[0]:
            self._seen = (content, time.monotonic())
            return True
        return time.monotonic() - self._seen[1] < self._stale_after

    def _claim(self, file: int, reliable: bool) -> bool:
        self._file = file
        self._beat()
        if not reliable:
            # Two watchers may have found it stale together: the one whose name stands after a pause has it.
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
    """Name this machine and its boot: a holder from before a reboot is somebody else."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _holder(path: Path) -> str:
    """Name the host and process that hold the lock, as they wrote it down."""
    try:
        owner = json.loads(path.read_bytes())
        return f"{owner['host'].split()[0]} (process {owner['pid']})"
    except (OSError, ValueError, KeyError):
        return "another process"  # it is about to write its name
