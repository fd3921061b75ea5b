"""Files of a repository into a folder: resumed, verified, with a record that marks them complete.

The hubs' own libraries list and download (hub.py). This module adds what they do not give: every file is verified by
hash before and after, damaged files are repaired, what the user's own cache holds is not downloaded, and progress is
reported in lines. The caller holds the folder's lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from qwen_job.atomic import sha256_of, sync_file, sync_folder
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.data_names import shown
from qwen_job.facts.model_files import listed, read_json
from qwen_job.remote.hub import WORKERS, Hub, RemoteFile, TransferError, WrongBytesError, clear_scratch
from qwen_job.storage import ELSEWHERE, Notify, git_sha1_of, write_json

MARKER = ".fetched.json"
ATTEMPTS = 3  # in a row without a new byte; the libraries retry within each
REPORT_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 5.0
T = TypeVar("T")


def damaged(folder: Path, *, hashes: bool = False) -> str:
    """Return the first thing wrong with a cached copy by its sizes, with ``hashes`` by its bytes; "" if it is sound.

    A copy without its record is incomplete, and a file without a recorded hash cannot be verified.
    """
    try:
        files = read_json(folder / MARKER).get("files")
        if not isinstance(files, dict) or not files:
            return f"{MARKER} lists no files"
        for name, facts in files.items():
            if fault := file_fault(listed(folder, name), facts if isinstance(facts, dict) else {}, hashes):
                return f"{name} {fault}"
    except ModelError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def file_fault(path: Path, facts: Mapping[str, object], hashes: bool) -> str:
    """Return what is wrong with a file by the size, with ``hashes`` also by the hash, in ``facts``; "" if sound."""
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        return "is missing"
    if size != facts.get("size"):
        return f"has {size:,} of {facts.get('size')} bytes"
    if not hashes:
        return ""
    for kind, hash_of in (("sha256", sha256_of), ("git_sha1", git_sha1_of)):
        if facts.get(kind):
            return "" if hash_of(path) == facts[kind] else "has other bytes than were downloaded"
    return "has no recorded hash"


class Download:
    """One download into ``folder``, whose lock the caller holds."""

    def __init__(self, hub: Hub, repository: str, revision: str, folder: Path, progress: Notify | None) -> None:
        self._hub, self._repository, self._revision, self._folder = hub, repository, revision, folder
        self._progress = progress or (lambda _: None)

    def run(
        self, files: Sequence[RemoteFile], *, first: Sequence[str] = (), check: Callable[[], None] = lambda: None
    ) -> dict[str, dict[str, object]]:
        """Leave ``files`` verified in the folder, and their record, which is returned: name -> size and hashes.

        ``first``: names of small files that come before the others; ``check`` then refuses the rest by an error.

        Raises:
            EnvironmentFault: the hub is unreachable, or the folder cannot be written.
        """
        try:
            return self._run(files, first, check)
        except OSError as error:
            raise EnvironmentFault(f"{self._folder}: cannot be written ({error}); {ELSEWHERE}") from error

    def fetch(self, files: Sequence[RemoteFile]) -> list[Path]:
        """Return the paths of ``files``, downloaded and verified before the others are known; nothing is recorded."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._fetch(files)
        except OSError as error:
            raise EnvironmentFault(f"{self._folder}: cannot be written ({error}); {ELSEWHERE}") from error
        return [self._folder / file.path for file in files]

    def _run(
        self, files: Sequence[RemoteFile], first: Sequence[str], check: Callable[[], None]
    ) -> dict[str, dict[str, object]]:
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = self._linked(self._unsound(files))
        self._assert_space(missing)
        self._fetch([file for file in missing if file.path in first])
        check()
        with self._reporting(rest := [file for file in missing if file.path not in first]):
            self._fetch(rest)
        clear_scratch(self._folder)
        paths = [self._folder / file.path for file in files]
        for path in paths:
            sync_file(path)
        for folder in {self._folder, *(path.parent for path in paths)}:
            sync_folder(folder)
        record = {file.path: _recorded(file, path) for file, path in zip(files, paths, strict=True)}
        origin = {
            self._hub.kind.api: shown(self._repository),
            "revision": self._revision,
            "endpoint": self._hub.endpoint,
        }
        write_json(self._folder / MARKER, {"version": 1, **origin, "files": record})
        return record

    def _unsound(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Return the files that are missing; remove those whose size or hash is wrong."""
        paths = [self._folder / file.path for file in files]
        with ThreadPoolExecutor(WORKERS) as workers:
            sound = list(workers.map(_is_sound, files, paths))
        for path, fine in zip(paths, sound, strict=True):
            if not fine:
                path.unlink(missing_ok=True)
        return [file for file, fine in zip(files, sound, strict=True) if not fine]

    def _linked(self, missing: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Link or copy what the user's own cache holds with the right bytes; return the rest."""
        found = self._hub.cached(self._repository, self._revision) if missing else None
        if found is None:
            return list(missing)
        rest = []
        for file in missing:
            if not _is_sound(file, found / file.path, strict=True):
                rest.append(file)
                continue
            self._progress(f"{file.path}: taken from {found}")
            _link(found / file.path, self._folder / file.path)
        return rest

    def _assert_space(self, missing: Sequence[RemoteFile]) -> None:
        needed = sum(file.size for file in missing) - self._bytes() if missing else 0
        stat = os.statvfs(self._folder)
        free = stat.f_bavail * stat.f_frsize
        if needed > free:
            raise EnvironmentFault(
                f"{self._folder}: {needed / 1e9:.1f} GB still to download, {free / 1e9:.1f} GB free; {ELSEWHERE}"
            )

    def _fetch(self, files: Sequence[RemoteFile]) -> None:
        def attempt() -> None:
            if missing := self._unsound(files):
                self._hub.download(self._repository, self._revision, missing, self._folder, self._progress)
            if wrong := self._unsound(files):
                raise WrongBytesError(
                    f"{wrong[0].path}: {self._hub.endpoint} sent other bytes than the hash and size it announced"
                )

        retried(self._hub, attempt, self._progress, self._bytes)

    def _bytes(self) -> int:
        """Return the bytes of the folder that belong to partial downloads and to files downloaded in full."""
        total = 0
        for path in self._folder.rglob("*"):
            with contextlib.suppress(OSError):  # a partial file that was just renamed
                total += path.stat().st_size if path.is_file() else 0
        return total

    @contextlib.contextmanager
    def _reporting(self, files: Sequence[RemoteFile]) -> Iterator[None]:
        """Report the progress of ``files`` in lines, which suit a log better than a bar."""
        total, before = sum(file.size for file in files), self._bytes()
        done = threading.Event()

        def report() -> None:
            while not done.wait(REPORT_SECONDS):
                here = max(0, self._bytes() - before)
                self._progress(f"{shown(self._repository)}: {here / 1e9:.1f} of {total / 1e9:.1f} GB downloaded")

        if files:
            self._progress(f"downloading {shown(self._repository)}: {len(files)} files, {total / 1e6:.1f} MB")
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()


def _recorded(file: RemoteFile, path: Path) -> dict[str, object]:
    """Return what the record keeps of a file; our own hash where the hub announced none."""
    sha256 = file.sha256 if file.sha256 or file.git_sha1 else sha256_of(path)
    return {"size": file.size, "sha256": sha256, "git_sha1": file.git_sha1}


def _is_sound(file: RemoteFile, path: Path, *, strict: bool = False) -> bool:
    """Tell whether ``path`` has the announced size and hash; ``strict``: no announced hash counts as unsound."""
    return not file_fault(path, vars(file), strict or bool(file.sha256 or file.git_sha1))


def _link(source: Path, target: Path) -> None:
    """Give ``target`` the content of ``source``: a hard link on the same file system, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def retried(hub: Hub, work: Callable[[], T], progress: Notify | None, size: Callable[[], int] = lambda: 0) -> T:
    """Repeat ``work`` after transfer errors; only attempts that brought no bytes count against ATTEMPTS.

    ``size``: returns the bytes that have come so far.
    """
    failures = 0
    while True:
        before = size()
        try:
            return work()
        except TransferError as error:
            failures = 0 if size() > before else failures + 1
            if failures >= ATTEMPTS:
                final = hub.kind.error(str(error)) if isinstance(error, WrongBytesError) else hub.unreachable(error)
                raise final from error
            pause = FIRST_PAUSE_SECONDS * 2 ** max(failures - 1, 0)
            if progress:
                progress(f"{error}; retrying in {pause:g} s")
            time.sleep(pause)
