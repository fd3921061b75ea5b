"""Write rows to a file, complete or not at all, in the format that the file's name says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from qwen_job.data.compress import ZSTD, packed_into, zstd_module
from qwen_job.errors import EnvironmentFault, UsageError

Write = Callable[[Any], object]
_FORMAT = re.compile(r"\.(jsonl?)(\.(gz|zst|zstd))?$")


def refuse_target(path: Path, *, force: bool) -> None:
    """Check that :func:`rows_into` can write ``path``.

    Raises:
        UsageError: it exists (unless ``force``), is a folder, has no folder, or has another suffix.
        EnvironmentFault: there is no package for its suffix.
    """
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file")
    if path.exists() and not force:
        raise UsageError(f"{path}: already exists; give another name, or --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}: is not a folder; create it first")
    if not _FORMAT.search(path.name):
        raise UsageError(f"{path}: cannot be written as its suffix says; "
                         "name it .json or .jsonl, or one of these with .gz or .zst")  # fmt: skip
    if path.suffix in ZSTD:
        zstd_module(path)


@contextlib.contextmanager
def rows_into(path: Path) -> Iterator[Write]:
    """Yield a function that writes one row: .json makes a list, .jsonl lines; .gz and .zst compress them.

    The file appears when the block ends without an error.

    Raises:
        EnvironmentFault: the disk is full or a permission is missing.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    found = _FORMAT.search(path.name)
    form = _lines if found is None or found[1] == "jsonl" else _array
    try:
        with aside.open("xb") as raw:
            with packed_into(raw, path.suffix) as stream, form(stream) as write:
                yield write
            raw.flush()
            os.fsync(raw.fileno())
        aside.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def _array(stream: IO[bytes]) -> Iterator[Write]:
    count = 0

    def write(value: Any) -> None:
        nonlocal count
        stream.write((b",\n" if count else b"[\n") + _json(value))
        count += 1

    yield write
    stream.write(b"\n]\n" if count else b"[]\n")


@contextlib.contextmanager
def _lines(stream: IO[bytes]) -> Iterator[Write]:
    yield lambda value: stream.write(_json(value) + b"\n")


def _json(value: Any) -> bytes:
    # Half of a surrogate pair (in an id, say) becomes its JSON escape.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")
