"""Writing files that are there in full or not at all, and making them last. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None, sync: bool = True) -> None:
    """Replace ``path`` so that a reader sees the old content or the new, never a part; its folder is made if missing.

    ``mode``: permissions, default what the umask leaves. ``sync=False`` skips the fsync, for files such as the
    heartbeat whose loss in a power cut does not matter. Raises OSError, with nothing left beside ``path``.
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


def sync_file(path: Path) -> None:
    """Force a file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk: a rename only lasts after this. File systems that cannot are left alone."""
    with contextlib.suppress(OSError):
        sync_file(folder)
