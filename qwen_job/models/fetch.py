"""A model from a hub in the shared cache: downloaded once, resumable, verified, and usable offline afterwards.

The hubs' own libraries list and download (hub.py). This module adds what they do not give: one process of the cluster
downloads, every file is verified by hash before and after, damaged files are repaired, and refusals are clear.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qwen_job.atomic import sha256_of, sync_file, sync_folder
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_files import QUANTIZED_FILES, exists, member, read_json, refuse_quantized
from qwen_job.facts.model_names import clean_name
from qwen_job.models.hub import WORKERS, Hub, RemoteFile, TransferError, WrongBytesError, clear_scratch
from qwen_job.models.hub_huggingface import HuggingFace
from qwen_job.models.hub_modelscope import ModelScope
from qwen_job.models.storage import ELSEWHERE, Notify, cache_folder, exclusive, git_sha1_of, write_json
from qwen_job.run.sections import ModelSpec

MARKER = ".fetched.json"
ATTEMPTS = 3  # in a row without a new byte; the libraries retry within each
REPORT_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 5.0
T = TypeVar("T")
_NEVER = (".*", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.mp4", "*.pdf", "*.md")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


def cached_folder(spec: ModelSpec) -> Path:
    """Return the folder that ``fetch_model`` downloads a hub's model into.

    Raises:
        ModelError: the model's name is not a hub ID.
    """
    return _place(spec)[3]


def _place(spec: ModelSpec) -> tuple[Hub, str, str, Path]:
    """Return the hub, the model's ID, its revision and its folder in the cache."""
    hub: Hub = HuggingFace() if spec.source == "huggingface" else ModelScope()
    revision = spec.revision or hub.default_revision
    try:
        model = clean_name(spec.name, hub.name)
    except ValueError as error:
        raise ModelError(f"model.name: {error}") from None
    names = [part.replace(".", "___") for part in (model.replace("/", "--"), revision.replace("/", "--"))]
    return hub, model, revision, cache_folder(spec.cache_dir) / hub.name / "@".join(names)


def fetch_model(spec: ModelSpec, *, verify: bool = False, progress: Notify | None = None) -> Path:
    """Return a folder with a model of ModelScope or Hugging Face; download the files that are missing.

    Any number of processes and nodes may call it: one downloads, the others wait. Files that the user's own ModelScope
    or Hugging Face cache holds are linked or copied instead of downloaded; without a network that cache is used in
    place. A killed download resumes. Pickles are left out if the model has safetensors. A complete copy is checked by
    file sizes, with ``verify`` also by hashes, and repaired.

    Raises:
        ModelError: no such model, no access, quantized, or the hub keeps sending other bytes than it announced.
        EnvironmentFault: the hub is unreachable, its library is not installed, the disk is full, or downloads are
            forbidden and the model is not cached.
    """
    hub, model, revision, folder = _place(spec)
    damage = damaged(folder, hashes=verify)
    if not damage:
        return folder
    if hub.offline:
        state = f"damaged in the cache ({folder}: {damage})" if exists(folder / MARKER) else f"not cached ({folder})"
        fault = EnvironmentFault(
            f"{model}: is {state}, and {hub.offline} forbids downloads; run 'qwen-job model fetch {model}' on a "
            "machine with internet access, with the same cache"
        )
        return _in_place(hub, model, revision, fault, progress)
    with exclusive(folder.with_name(f"{folder.name}.lock"), progress):
        if damage := damaged(folder, hashes=verify):
            if progress and exists(folder / MARKER):
                progress(f"{folder.name}: {damage}: downloading the damaged files again")
            try:
                files = wanted(_retried(hub, lambda: hub.list_files(model, revision, progress), lambda: 0, progress))
            except EnvironmentFault as error:
                return _in_place(hub, model, revision, error, progress)
            try:
                _Download(hub, model, revision, folder, progress).run(files)
            except OSError as error:
                raise EnvironmentFault(f"{folder}: cannot be written ({error}); {ELSEWHERE}") from error
    return folder


def _in_place(hub: Hub, model: str, revision: str, fault: EnvironmentFault, progress: Notify | None) -> Path:
    """Return the copy in the user's own cache; the caller checks that it is complete. Raise ``fault`` without one."""
    found = hub.cached(model, revision)
    if found is None:
        raise fault
    if progress:
        progress(f"{model}: using the copy in {found}, which cannot be compared with {hub.name} now")
    return found


def damaged(folder: Path, *, hashes: bool = False) -> str:
    """Return the first thing wrong with a cached copy by its sizes, with ``hashes`` by its bytes; "" if it is sound.

    A copy without its record is incomplete, and a file without a recorded hash cannot be verified.
    """
    try:
        listed = read_json(folder / MARKER).get("files")
        if not isinstance(listed, dict) or not listed:
            return f"{MARKER} lists no files"
        for name, facts in listed.items():
            if fault := _fault(member(folder, name), facts if isinstance(facts, dict) else {}, hashes):
                return f"{name} {fault}"
    except ModelError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror}"
    return ""


def _fault(path: Path, facts: dict[str, object], hashes: bool) -> str:
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


def wanted(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a model that training needs: no pictures, no other formats, pickles only as a last resort."""
    safe = any(file.path.endswith(".safetensors") for file in files)
    unwanted = (*_NEVER, *_PICKLES) if safe else _NEVER
    chosen = []
    for file in files:
        parts = PurePosixPath(file.path).parts
        if file.path.startswith("/") or ".." in parts:
            raise ModelError(f"{file.path}: the hub lists a file outside the model's folder; do not use this model")
        if len(parts) == 1 and not any(fnmatch.fnmatch(parts[0].lower(), pattern) for pattern in unwanted):
            chosen.append(file)
    if not chosen:
        raise ModelError("the hub lists no files of a model; check the model's ID and revision")
    return chosen


class _Download:
    """One download into ``folder``, whose lock the caller holds."""

    def __init__(self, hub: Hub, model: str, revision: str, folder: Path, progress: Notify | None) -> None:
        self._hub, self._model, self._revision, self._folder = hub, model, revision, folder
        self._progress = progress or (lambda _: None)

    def run(self, files: Sequence[RemoteFile]) -> None:
        """Leave exactly ``files`` verified in the folder, and their record."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = self._linked(self._unsound(files))
        self._assert_space(missing)
        settings = [file for file in missing if file.path in ("config.json", *QUANTIZED_FILES)]
        self._fetch(settings)
        if exists(self._folder / "config.json"):
            refuse_quantized(self._folder, read_json(self._folder / "config.json"))
        with self._reporting(rest := [file for file in missing if file not in settings]):
            self._fetch(rest)
        clear_scratch(self._folder)
        for file in files:
            sync_file(self._folder / file.path)
        sync_folder(self._folder)
        listed = {file.path: {"size": file.size, "sha256": file.sha256, "git_sha1": file.git_sha1} for file in files}
        origin = {"model": self._model, "revision": self._revision, "endpoint": self._hub.endpoint}
        write_json(self._folder / MARKER, {"version": 1, **origin, "files": listed})

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
        found = self._hub.cached(self._model, self._revision) if missing else None
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
                self._hub.download(self._model, self._revision, missing, self._folder, self._progress)
            if wrong := self._unsound(files):
                raise WrongBytesError(
                    f"{wrong[0].path}: {self._hub.endpoint} sent other bytes than the hash and size it announced"
                )

        _retried(self._hub, attempt, self._bytes, self._progress)

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
                self._progress(f"{self._model}: {here / 1e9:.1f} of {total / 1e9:.1f} GB downloaded")

        if files:
            self._progress(f"downloading {self._model}: {len(files)} files, {total / 1e6:.1f} MB")
        reporter = threading.Thread(target=report, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()


def _is_sound(file: RemoteFile, path: Path, *, strict: bool = False) -> bool:
    """Tell whether ``path`` has the announced size and hash; ``strict``: no announced hash counts as unsound."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.sha256:
        return sha256_of(path) == file.sha256
    return git_sha1_of(path) == file.git_sha1 if file.git_sha1 else not strict


def _link(source: Path, target: Path) -> None:
    """Give ``target`` the content of ``source``: a hard link on the same file system, else a copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _retried(hub: Hub, work: Callable[[], T], size: Callable[[], int], progress: Notify | None) -> T:
    """Repeat ``work`` after transfer errors; only attempts that brought no bytes count against ATTEMPTS."""
    failures = 0
    while True:
        before = size()
        try:
            return work()
        except TransferError as error:
            failures = 0 if size() > before else failures + 1
            if failures >= ATTEMPTS:
                final = ModelError(str(error)) if isinstance(error, WrongBytesError) else hub.unreachable(error)
                raise final from error
            pause = FIRST_PAUSE_SECONDS * 2 ** max(failures - 1, 0)
            if progress:
                progress(f"{error}; retrying in {pause:g} s")
            time.sleep(pause)
