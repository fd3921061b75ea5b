"""The job that uses a run folder: its queue, ID, owner and log, as recorded in the folder."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_job.atomic import read_limited
from qwen_job.errors import EnvironmentFault
from qwen_job.run.folder import LAUNCH, OWNER, RunFolder

_MOST_BYTES = 65536


@dataclass(frozen=True)
class Owner:
    """The job that last started in a run folder; fields that its script did not record are empty."""

    target: str = ""
    id: str = ""
    user: str = ""
    log: str = ""


def owner_of(run: str | Path) -> Owner:
    """Read launch/job, which the job's script writes into the run folder; without the file, all fields are empty.

    A sweep's folder belongs to the array whose tasks use the run folders below it.
    """
    return _written(run) or _of_sweep(run) or Owner()


def _of_sweep(run: str | Path) -> Owner | None:
    if not os.access(RunFolder(Path(run)).sweep, os.R_OK):
        return None
    tasks = (_written(path.parent.parent) for path in sorted(Path(run).glob(f"*/{LAUNCH}/{OWNER}")))
    first = next(filter(None, tasks), None)
    return first and Owner(first.target, first.id.partition("_")[0], first.user, first.log)


def _written(run: str | Path) -> Owner | None:
    try:
        text = read_limited(RunFolder(Path(run)).owner, _MOST_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return None
    told = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    return Owner(**{name: told[name] for name in ("target", "id", "user", "log") if name in told})


def check_readable(folder: str | Path) -> None:
    """Refuse a folder that exists but cannot be read.

    Raises:
        EnvironmentFault: names the folder, the parent that denies access, and its owner.
    """
    if why := forbids(folder):
        raise EnvironmentFault(f"{Path(folder).absolute()}: {why}")


def forbids(folder: str | Path) -> str:
    """Return why a folder cannot be read; empty if it can, or if it does not exist."""
    if not str(folder):
        return ""
    path = Path(folder).absolute()
    try:
        path.stat()
        wanted = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
        if os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids):
            return ""
    except PermissionError:
        pass
    except (OSError, ValueError):
        return ""
    return _no_permission(path)


def _no_permission(path: Path) -> str:
    import pwd

    for folder in (path, *path.parents):
        try:
            number = folder.stat().st_uid
        except OSError:
            continue
        owner = str(number)
        with suppress(KeyError):
            owner = pwd.getpwuid(number).pw_name
        which = "" if folder == path else f" ({folder} is closed)"
        return f"no permission to read it{which}: it belongs to {owner}, who can open it to you"
    return "no permission to read it"
