"""Write files atomically and durably, and read them within limits. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import select
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_BLOCK = 2**20


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None, sync: bool = True) -> None:
    """Replace ``path`` so that a reader sees the old content or the new, never a part; create its folder if missing.

    ``mode``: permissions; the default follows the umask. ``sync=False`` skips the fsync, for files such as the
    heartbeat whose loss in a power failure does not matter.

    Raises:
        OSError: it cannot be written; no temporary file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        with aside.open("xb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


class TooLarge(ValueError):
    """A file is larger than the reader accepts. The message is meant to follow the file's name."""

    def __init__(self, most: int) -> None:
        super().__init__(f"is over {_size(most)}")


def read_limited(path: str | Path, most: int, *, pipes: bool = False, patience: float = 60.0) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes, without blocking on anything else.

    ``pipes``: also read a pipe that has a writer, such as a shell's ``<(...)``; ``patience``: the seconds that it may
    stay silent.

    Raises:
        ValueError: it is a pipe, a device or a socket, or too large; the message is meant to follow the name.
        OSError: it does not exist, is a folder, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with io.FileIO(descriptor) as stream:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, "Is a directory", str(path))
        pipe = stat.S_ISFIFO(kind)
        if not (stat.S_ISREG(kind) or (pipe and pipes)):
            raise ValueError(f"is {_kind(kind)}, not a file")
        pieces: list[bytes] = []
        left = most + 1
        while left > 0 and (piece := _piece(stream, left, patience)):
            pieces.append(piece)
            left -= len(piece)
    if pipe and not pieces:
        raise ValueError("is a pipe that nobody writes to")
    if left <= 0:
        raise TooLarge(most)
    return b"".join(pieces)


def _piece(stream: io.FileIO, most: int, patience: float) -> bytes:
    while (piece := stream.read(min(most, 2**20))) is None:  # a pipe that is still open for writing
        if not select.select([stream], [], [], patience)[0]:
            raise ValueError(f"is a pipe that stayed silent for {patience:.0f} seconds")
    return piece


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count:,} bytes"


def _kind(mode: int) -> str:
    names = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return names.get(stat.S_IFMT(mode), "something else")


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe or a device, which could block.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(22, "is not a regular file", str(path))
        yield file


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file of any size.

    Raises:
        OSError: the file does not exist, is not a regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Force a file's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, which makes a rename durable; ignored if the file system cannot."""
    with contextlib.suppress(OSError):
        sync_file(folder)
