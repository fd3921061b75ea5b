"""Writing a bundle to a folder without losing what is there, and showing what a run wrote."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qwen_job.errors import EnvironmentFault
from qwen_job.files import write_atomically
from qwen_job.render.bundle import Bundle


def write_bundle(bundle: Bundle, folder: Path, *, force: bool = False) -> list[Path]:
    """Write every file of ``bundle`` into ``folder`` and return their paths.

    Errors: :class:`EnvironmentFault` before anything is written, when a file is there with another content (unless
    ``force``) or the folder cannot be written.
    """
    paths = {folder / name: text for name, text in bundle.files.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        changed = [path for path, text in paths.items() if path.exists() and path.read_bytes() != text.encode()]
        if changed and not force:
            names = ", ".join(str(path) for path in changed)
            raise EnvironmentFault(
                f"{names}: there already, with another content; --diff shows it, --force replaces it"
            )
        for path, text in paths.items():
            write_atomically(path, text)
            if path.name in bundle.executable:
                # Who may read it may run it; who that is, the umask says.
                mode = path.stat().st_mode
                path.chmod(mode | (mode & 0o444) >> 2)
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or folder}: cannot be written: {error.strerror}") from None
    return list(paths)


def run_log(run: str) -> Path | None:
    """Return what the first node of a run wrote, which outlives its job; None where there is nothing."""
    log = Path(run, "logs", "node-0.log")
    return log if run and log.exists() else None


def show_log(log: Path, *, follow: bool) -> int:
    """Print a file, with ``follow`` until interrupted; return an exit code."""
    words = ["tail", "-n", "+1", *(["-F"] if follow else []), "--", str(log)]
    try:
        return subprocess.run(words, check=False).returncode
    except KeyboardInterrupt:
        return 0
