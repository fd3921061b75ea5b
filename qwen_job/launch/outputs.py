"""Writing a bundle to a folder without losing what is there, and showing what a run wrote."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from qwen_job.atomic import write_atomically
from qwen_job.errors import EnvironmentFault
from qwen_job.render.bundle import Bundle
from qwen_job.run.folder import RunFolder
from qwen_job.run.reading import there

# Seconds that a render waits for another one into the same folder.
PATIENCE = 30.0
_COLOURS = re.compile("\x1b\\[[0-9;]{0,12}[mK]")


def write_bundle(bundle: Bundle, folder: Path, *, force: bool = False) -> list[Path]:
    """Write every file of ``bundle`` into ``folder`` and return their paths.

    Raises:
        EnvironmentFault: a file exists with other content (unless ``force``), another process writes into the folder,
            or it is not writable. Nothing has been written then.
    """
    paths = {folder / name: text for name, text in bundle.files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _write(paths, bundle.executable, force=force)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return list(paths)


def _write(paths: Mapping[Path, str], executable: Container[str], *, force: bool) -> None:
    for path in paths:
        if path.exists() and not path.is_file():
            raise EnvironmentFault(f"{path}: cannot be written: it is no file; move it away, or choose another folder")
    changed = [path for path, text in paths.items() if path.exists() and not _holds(path, text.encode())]
    if changed and not force:
        names = ", ".join(str(path) for path in changed)
        raise EnvironmentFault(
            f"{names}: already exists with other content; use --diff to see it, --force to replace it"
        )
    for path, text in paths.items():
        write_atomically(path, text)
        if path.name in executable:
            # Who may read it may run it; who that is, the umask says.
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o444) >> 2)


def _holds(path: Path, content: bytes) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder.

    Raises:
        EnvironmentFault: another one has been writing for ``PATIENCE`` seconds.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + PATIENCE
        while not _locked(descriptor):
            if time.monotonic() > until:
                raise EnvironmentFault(f"{folder}: another qwen-job writes into it; wait for it, or choose another")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks of folders: the files are still written one by one, each whole
    return True


def run_log(run: str) -> Path | None:
    """Return what the first node of a run wrote, which outlives its job; None where there is nothing."""
    log = RunFolder(Path(run)).node_log(0)
    return log if run and there(log) else None


def logs_of(run: str) -> list[Path]:
    """Return the files in a run's logs/, in the order of their names."""
    folder = RunFolder(Path(run)).logs
    try:
        return sorted(path for path in folder.iterdir() if path.is_file()) if run else []
    except OSError:
        return []


def show_log(log: Path, *, follow: bool) -> int:
    """Print a file, with ``follow`` until interrupted; return an exit code.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
    """
    if not log.is_file():
        raise EnvironmentFault(f"{log}: is no file that can be shown")
    return show_output(["tail", "-n", "+1", *(["-F"] if follow else []), "--", str(log)])


def show_output(words: Sequence[str], errors: list[str] | None = None) -> int:
    """Print what a command writes, made visible, as it comes; return its exit code, 0 where it was interrupted.

    ``errors`` takes what it writes to standard error at its end; without it that is passed through.
    """
    with tempfile.TemporaryFile() as aside:
        code = _shown(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=None if errors is None else aside))
        if errors is not None:
            aside.seek(0)
            errors.append(aside.read(2**20).decode("utf-8", "replace"))
    return code


def _shown(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)  # a progress bar's renewals are lines, too
    try:
        while piece := os.read(process.stdout.fileno(), 65536):
            _pass_on(newlines.decode(piece))
        _pass_on(newlines.decode(b"", True))
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.terminate()
            process.wait()


def _pass_on(text: str) -> None:
    sys.stdout.write(_COLOURS.sub("", text) if not sys.stdout.isatty() else text)
    sys.stdout.flush()
