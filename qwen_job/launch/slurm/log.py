"""Choose where a Slurm job's log goes.

Slurm creates no folders, and a job whose log cannot be opened on its node fails at once.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from pathlib import Path

from qwen_job.errors import EnvironmentFault
from qwen_job.render.bundle import Request
from qwen_job.run.folder import RunFolder

# Node-local on every cluster we know of.
_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/run")
_IN_MEMORY = {"tmpfs", "ramfs"}
# A pattern in the name of a log (%j, %4x), or a literal %%.
_MARK = re.compile(r"%(%|\d*[a-zA-Z])")


def log_options(request: Request, run: str, here: Path) -> list[str]:
    """Return extra sbatch options that make sure the job's log can be opened on its nodes.

    The folders of the logs are created; ``here`` is the folder in which sbatch is called.

    Raises:
        EnvironmentFault: a folder cannot be created or written; the message names its field.
    """
    options, fields = request.values, request.fields
    base = here / options["chdir"] if options.get("chdir") else here
    written = {name: options[name] for name in ("output", "error") if options.get(name)}
    relative = [name for name, value in written.items() if not Path(value).is_absolute()]
    if relative and not seen_by_nodes(base, run):
        base = RunFolder(Path(run)).logs
        _make(base, "output")
        away = [f"--chdir={base}"]
    else:
        away = []
    words = []
    for name, value in written.items():
        folder = _filled(str(Path(_literal(str(base)), value).parent), options)
        where = fields.get(name, "slurm.log_dir")
        if _MARK.search(folder.replace("%%", "")):
            text = f"{value}: Slurm does not create folders named after a job; use a folder without %"
            raise EnvironmentFault(f"{where}: {text}")
        _make(Path(folder.replace("%%", "%")), where)
        if name in relative and (away or "%" in str(base)):
            words.append(f"--{name}={_literal(str(base))}/{value}")
    return [*away, *words]


def _literal(path: str) -> str:
    """Write a path so that Slurm expands nothing in it."""
    return path.replace("%", "%%")


def _filled(folder: str, options: Mapping[str, str]) -> str:
    known = {"x": options.get("job-name", ""), "u": getpass.getuser()}
    return _MARK.sub(lambda found: _literal(known[found[1]]) if known.get(found[1]) else found[0], folder)


def _make(folder: Path, field: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        text = f"{folder} cannot be created: {error.strerror}; choose another folder"
        raise EnvironmentFault(f"{field}: {text}") from None
    if not writable:
        raise EnvironmentFault(f"{field}: {folder} is not writable: Permission denied; choose another folder")


def seen_by_nodes(folder: Path, run: str) -> bool:
    """Tell whether the nodes are likely to see ``folder``, by comparing it with the run folder, which they must see.

    If the run folder looks local to one machine too, moving the log there would not help, so the answer is yes.
    """
    place, other = os.path.realpath(folder), os.path.realpath(run)
    mounts = _mounts()
    (point, kind), of_run = _mount(place, mounts), _mount(other, mounts)
    # A file system mounted below such a root may still be shared.
    own_mount = _local_root(of_run[0]) and of_run[0] not in _LOCAL
    if of_run[1] in _IN_MEMORY or (_local_root(other) and not own_mount):
        return True
    if (point, kind) == of_run and _local_root(place) == _local_root(other):
        return True
    return not _local_root(place) and kind not in _IN_MEMORY


def _local_root(path: str) -> str:
    return next((root for root in _LOCAL if path == root or path.startswith(f"{root}/")), "")


def _mounts() -> dict[str, str]:
    """Return mount point -> file system type, or nothing on a machine without /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda one: chr(int(one[1], 8)), before.split()[4])
        found[point] = after.split()[0]
    return found


def _mount(path: str, mounts: Mapping[str, str]) -> tuple[str, str]:
    points = [point for point in mounts if path == point or path.startswith(point.rstrip("/") + "/")]
    point = max(points, key=len, default="/")
    return point, mounts.get(point, "")
