"""Where compiled kernels are kept: a private folder on the node, and one archive in the run's folder.

torch reads and writes the node's folder while it compiles. After a run has compiled, its first rank packs that folder
into the run's ``kernels.zip``; a node that has no such folder begins with the archive, so that a restart compiles
nothing, on other nodes neither. An image may bring archives, too (``make image WARM=RUN``).

Both have a key: torch, CUDA, GPU, qwen-job, and what the run compiles. Kernels of another key are ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from qwen_job import __version__, strict_json
from qwen_job.run.config import TrainConfig
from qwen_job.run.folder import KERNELS, RunFolder
from qwen_job.text import GIB

Key = dict[str, str]
_KEY = "key.json"
# A run of Qwen-1.8B needs some ten MB; with less than this, torch would fail in the middle.
_ROOM_BYTES = GIB // 4
_MOST_BYTES = GIB // 2
_OURS = re.compile("[0-9a-f]{16}")
_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "triton"}


class KernelCache(NamedTuple):
    """The node's folder of kernels for one key; ``source`` says where its content came from, empty if it was empty."""

    folder: Path
    key: Key
    source: str = ""


def key_of(config: TrainConfig, model_folder: Path) -> Key:
    """Return what compiled kernels depend on. Reads the GPU's name, or the processor's instructions."""
    training = config.training
    compiled = {
        "model": hashlib.sha256((model_folder / "config.json").read_bytes()).hexdigest(),
        "rows": [training.per_device_train_batch_size, config.data.max_length, config.sequence_parallel_size],
        "kernels": [config.precision, config.attention, config.fused_loss, config.gradient_checkpointing],
        "options": [training.extra().get(f"torch_compile_{name}") for name in ("backend", "mode")],
    }
    return {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda or "none",
        "device": torch.cuda.get_device_name() if config.device == "cuda" else _processor(),
        "Python": platform.python_version(),
        "qwen-job": __version__,
        "settings": hashlib.sha256(json.dumps(compiled).encode()).hexdigest()[:16],
    }


def _processor() -> str:
    """Return a digest of what the processor can do: C++ is compiled for exactly that."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))]
    return f"{platform.machine()} {hashlib.sha256(''.join(lines[:1]).encode()).hexdigest()[:12]}"


def open_cache(run: RunFolder, key: Key, say: Callable[[str], None]) -> KernelCache:
    """Choose this node's folder, fill it from an archive if it is new, and point torch and Triton to it.

    Raises:
        OSError: no folder on this node has room.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = _root(say) / name
    source = str(folder) if folder.is_dir() else _import(_archives(run), key, folder, say)
    folder.mkdir(mode=0o700, exist_ok=True)
    follow_cache(folder)
    return KernelCache(folder, key, source)


def follow_cache(folder: Path) -> None:
    """Point torch and Triton of this rank to the folder that the node's first rank has chosen."""
    for variable, leaf in _FOLDERS.items():
        os.environ[variable] = str(folder / leaf)


def keep_cache(cache: KernelCache, run: RunFolder, say: Callable[[str], None]) -> None:
    """Pack the node's folder into the run's archive; without space for it, the run continues without one."""
    files = sorted(path for path in cache.folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    size = sum(path.stat().st_size for path in files)
    if size > _MOST_BYTES:
        say(f"{KERNELS}: not written, {size / GIB:.1f} GiB of kernels are too many; a restart elsewhere compiles again")
        return
    beside = run.kernels.with_suffix(".part")
    try:
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
            archive.writestr(_KEY, json.dumps(cache.key))
            for path in files:
                archive.write(path, path.relative_to(cache.folder).as_posix())
        beside.replace(run.kernels)
    except OSError as error:
        beside.unlink(missing_ok=True)
        say(f"{KERNELS}: not written ({error.strerror or error}); a restart on another node compiles again")


def _root(say: Callable[[str], None]) -> Path:
    """Return the first private folder on this node with room."""
    problems: list[str] = []
    for root in _candidates(f"qwen-job-kernels-{os.geteuid()}"):
        try:
            _make_private(root)
            free = shutil.disk_usage(root).free
        except OSError as error:
            problems.append(f"{root}: {error.strerror or error}")
            continue
        if free >= _ROOM_BYTES:
            for problem in problems:
                say(f"compiled kernels: {problem}; using {root}")
            return root
        problems.append(f"{root}: {free / 2**20:.0f} MiB are free, {_ROOM_BYTES / 2**20:.0f} are needed")
    raise OSError(f"no room for compiled kernels ({'; '.join(problems)})")


def _candidates(name: str) -> list[Path]:
    """Return where kernels may be kept, the best first: TORCHINDUCTOR_CACHE_DIR, /tmp, memory.

    What the image derives from QWEN_JOB_CACHE comes second: that may be a folder which nodes share, where the locks of
    torch and Triton can hang.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # imports the compiler

    given, shared = os.environ.get("TORCHINDUCTOR_CACHE_DIR"), os.environ.get("QWEN_JOB_CACHE")
    if given and _OURS.fullmatch(Path(given).name):
        given = str(Path(given).parent)  # set here for an earlier training of this process
    if given == default_cache_dir():
        given = None  # set by torch itself as it is imported
    found = [Path(parent, name) for parent in (_temporary(), "/dev/shm") if parent]
    if given:
        found.insert(1 if shared and given == str(Path(shared, "inductor")) else 0, Path(given))
    return found


def _temporary() -> str | None:
    try:
        return tempfile.gettempdir()
    except OSError:
        return None


def _make_private(folder: Path) -> None:
    """Make a folder that nobody else can write: what is loaded from it is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if folder.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("other users can write there")
    with tempfile.TemporaryFile(dir=folder):
        pass


def _archives(run: RunFolder) -> Iterator[Path]:
    yield run.kernels
    image = os.environ.get("QWEN_JOB_IMAGE")
    if image:
        yield from sorted(Path(image).with_name("kernels").glob("*.zip"))


def _import(archives: Iterator[Path], key: Key, folder: Path, say: Callable[[str], None]) -> str:
    """Unpack the first archive with this key as ``folder``; returns which, empty if there is none."""
    for path in archives:
        if not path.is_file():
            continue
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
                if other := _unpack(path, key, Path(aside, "new")):
                    say(f"{path}: ignored, its kernels were compiled for another {other}")
                    continue
                with contextlib.suppress(FileExistsError):
                    Path(aside, "new").rename(folder)
            return str(path)
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError) as error:
            say(f"{path}: ignored ({error})")
    return ""


def _unpack(path: Path, key: Key, target: Path) -> str:
    """Unpack an archive that has this key; returns what differs otherwise."""
    with zipfile.ZipFile(path) as archive:
        theirs = strict_json.loads(archive.read(_KEY).decode())
        if theirs != key:
            others = [name for name in key if not isinstance(theirs, dict) or theirs.get(name) != key[name]]
            return f"{others[0]} (now {key[others[0]]})" if others else "version of qwen-job"
        if sum(member.file_size for member in archive.infolist()) > 2 * _MOST_BYTES:
            raise ValueError("is too large")
        target.mkdir(mode=0o700)
        archive.extractall(target, [name for name in archive.namelist() if name != _KEY])
    return ""
