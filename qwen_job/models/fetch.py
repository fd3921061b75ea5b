"""A model from a hub to the shared cache: once, resumable, verified, and offline ever after."""

from __future__ import annotations

import fnmatch
import http.client
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from qwen_job.atomic import sha256_of, sync_folder
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.facts.model_names import clean_name
from qwen_job.models.config import QUANTIZED_FILES, refuse_quantized
from qwen_job.models.hub import (
    Hub,
    RemoteFile,
    TransferError,
    WrongBytesError,
    default_revision,
    endpoint,
    list_files,
    offline,
    open_url,
    unreachable,
)
from qwen_job.models.lock import Progress, exclusive
from qwen_job.models.spec import ModelSpec, cache_folder
from qwen_job.models.storage import ELSEWHERE, exists, git_sha1_of, member, read_json, write_json

MARKER = ".fetched.json"
TRIES = 6  # in a row without a byte
TELL_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 1.0
WORKERS = 4
T = TypeVar("T")
_CHUNK = 1 << 20
_NEVER = (".*", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.mp4", "*.pdf", "*.md")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


def cached_folder(spec: ModelSpec) -> Path:
    """Return where ``fetch_model`` puts a hub's model, as the hub has it; ModelError for a name that is none."""
    return _place(spec)[3]


def _place(spec: ModelSpec) -> tuple[Hub, str, str, Path]:
    """Return the hub, the model's id, its revision and its folder in the cache."""
    hub: Hub = "huggingface" if spec.source == "huggingface" else "modelscope"
    revision = spec.revision or default_revision(hub)
    try:
        model = clean_name(spec.name, hub)
    except ValueError as error:
        raise ModelError(f"model.name: {error}") from None
    names = [part.replace(".", "___") for part in (model.replace("/", "--"), revision.replace("/", "--"))]
    return hub, model, revision, cache_folder(spec.cache_dir) / hub / "@".join(names)


def fetch_model(spec: ModelSpec, *, verify: bool = False, progress: Progress | None = None) -> Path:
    """Return the cache's folder with a model of ModelScope or Hugging Face; download what of it is not there.

    Any number of processes and nodes may call it: one downloads, the others wait. A killed download resumes where it
    was. Files are checked against the hub's sizes and hashes; pickles are left out where there are safetensors.
    A complete copy is checked by its files' sizes, with ``verify`` by their hashes too, and repaired.

    Raises:
        ModelError: no such model, no access, quantized, or the hub keeps sending other bytes than it announced.
        EnvironmentFault: the hub cannot be reached, the disk is full, or downloads are forbidden and it is not cached.
    """
    hub, model, revision, folder = _place(spec)
    damage = damaged(folder, hashes=verify)
    if not damage:
        return folder
    forbidden = offline(hub)
    if forbidden:
        state = f"is damaged in the cache ({folder}: {damage})" if exists(folder / MARKER) else (
            f"is not in the cache ({folder})")  # fmt: skip
        raise EnvironmentFault(
            f"{model}: {state} and {forbidden} forbids to download; "
            f"run 'qwen-job model fetch {model}' where there is a network, with the same cache"
        )
    with exclusive(folder.with_name(f"{folder.name}.lock"), progress):
        if damage := damaged(folder, hashes=verify):
            if progress and exists(folder / MARKER):
                progress(f"{folder.name}: {damage}: fetching what is damaged again")
            _download_all(hub, model, revision, folder, progress)
    return folder


def damaged(folder: Path, *, hashes: bool = False) -> str:
    """Return the first thing wrong with a copy in the cache, empty for a sound one; sizes, and with ``hashes`` bytes.

    A copy without its record is not complete; a file without a recorded hash cannot be told to be sound by it.
    """
    try:
        listed = read_json(folder / MARKER).get("files")
        if not isinstance(listed, dict) or not listed:
            return f"{MARKER} names no files"
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
            return "" if hash_of(path) == facts[kind] else "has other bytes than were fetched"
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
    return chosen


def _download_all(hub: Hub, model: str, revision: str, folder: Path, progress: Progress | None) -> None:
    files = wanted(_again(hub, lambda: list_files(hub, model, revision), lambda: 0, progress))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _assert_space(files, folder)
        _refuse_quantized(hub, files, folder, progress)
        with ThreadPoolExecutor(WORKERS) as workers:
            jobs = [workers.submit(_download, hub, file, folder / file.path, progress) for file in files]
            for job in jobs:
                job.result()
        sync_folder(folder)
        listed = {file.path: {"size": file.size, "sha256": file.sha256, "git_sha1": file.git_sha1} for file in files}
        write_json(
            folder / MARKER,
            {"version": 1, "model": model, "revision": revision, "endpoint": endpoint(hub), "files": listed},
        )
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be written ({error}); {ELSEWHERE}") from error


def _refuse_quantized(hub: Hub, files: Sequence[RemoteFile], folder: Path, progress: Progress | None) -> None:
    """Look at the settings before gigabytes of weights come that cannot be trained."""
    for file in files:
        if file.path in ("config.json", *QUANTIZED_FILES):
            _download(hub, file, folder / file.path, progress)
    if exists(folder / "config.json"):
        refuse_quantized(folder, read_json(folder / "config.json"))


def _assert_space(files: Sequence[RemoteFile], folder: Path) -> None:
    missing = sum(file.size - _size(folder / file.path) - _size(_part(folder / file.path)) for file in files)
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if missing > free:
        raise EnvironmentFault(
            f"{folder}: {missing / 1e9:.1f} GB are still to come and {free / 1e9:.1f} GB are free; {ELSEWHERE}"
        )


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _download(hub: Hub, file: RemoteFile, path: Path, progress: Progress | None) -> None:
    if _size(path) == file.size and path.exists() and _has_its_hash(file, path):
        return
    _again(hub, lambda: _transfer(hub, file, path, progress), lambda: _size(_part(path)), progress)


def _has_its_hash(file: RemoteFile, path: Path) -> bool:
    if file.sha256:
        return sha256_of(path) == file.sha256
    return file.git_sha1 in (None, git_sha1_of(path))


def _transfer(hub: Hub, file: RemoteFile, path: Path, progress: Progress | None) -> None:
    part = _part(path)
    have = _size(part)
    if have > file.size:
        part.unlink()
        have = 0
    if progress:
        more = f", going on at {have / file.size:.0%}" if have else ""
        progress(f"downloading {file.path} ({file.size / 1e6:.1f} MB{more})")
    if have < file.size or not part.exists():
        _receive(hub, file, part, have, progress)
    if _size(part) != file.size:
        raise TransferError(f"{file.path}: {_size(part)} of {file.size} bytes came")
    if not _has_its_hash(file, part):
        part.unlink()
        raise WrongBytesError(f"{file.path}: {endpoint(hub)} sends other bytes than the hash it announced")
    part.replace(path)


def _receive(hub: Hub, file: RemoteFile, part: Path, have: int, progress: Progress | None) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with open_url(hub, file.url, headers) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        with part.open("ab" if have and goes_on else "wb") as target:
            told = time.monotonic()
            while piece := _read(response, file):
                target.write(piece)
                if target.tell() > file.size:
                    raise WrongBytesError(f"{file.path}: more than the {file.size} bytes that were announced came")
                if progress and time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    progress(f"{file.path}: {target.tell() / file.size:.0%} of {file.size / 1e6:.0f} MB")
            target.flush()
            os.fsync(target.fileno())


def _read(response: http.client.HTTPResponse, file: RemoteFile) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise TransferError(f"{file.path}: broke off ({error})") from error


def _again(hub: Hub, work: Callable[[], T], size: Callable[[], int], progress: Progress | None) -> T:
    """Repeat ``work`` while it breaks off; only tries that brought no bytes count against TRIES."""
    failures = 0
    while True:
        before = size()
        try:
            return work()
        except TransferError as error:
            failures = 0 if size() > before else failures + 1
            if failures >= TRIES:
                final = ModelError(str(error)) if isinstance(error, WrongBytesError) else unreachable(hub, error)
                raise final from error
            pause = FIRST_PAUSE_SECONDS * 2 ** max(failures - 1, 0)
            if progress:
                progress(f"{error}; trying again in {pause:g} s")
            time.sleep(pause)
