"""Images for the container runtimes: a stand-in of a few kilobytes, or a real one turned into what each runtime takes.

The stand-in is an empty root with the image's environment; /usr, Python and the checkout are the job's mounts. So it
costs nothing to make, and the job's mounts are tried along the way.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
# As the Dockerfile's ENV has it.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "QWEN_JOB_CACHE": "/tmp/qwen-job"}


class Image(NamedTuple):
    """One image in the three forms, what a job must mount to use it, and its Python."""

    folder: Path
    squashfs: Path
    name: str
    mounts: list[str]
    python: str

    def for_runtime(self, runtime: str) -> str:
        """Return what job.yaml names as the image."""
        return {"charliecloud": str(self.folder), "pyxis": str(self.squashfs)}.get(runtime, self.name)


def missing_runtimes() -> str:
    """Return in words which runtimes this machine lacks, or ""."""
    lacking = [tool for tool in ("ch-run", "podman", "runc") if not shutil.which(tool)]
    return f"no {', '.join(lacking)}: apt-get install charliecloud-runtime podman runc" if lacking else ""


def stand_in(folder: Path) -> Image:
    """Make the stand-in below ``folder``."""
    root = folder / "root"
    for name in ("usr", "etc", "dev", "proc", "sys", "tmp", "run", "var/tmp", "ch"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    for name in ("hosts", "resolv.conf"):
        (root / "etc" / name).touch()
    name = "localhost/qwen-job-stand-in:test"
    changes = [word for pair in ENVIRONMENT.items() for word in ("--change", f"ENV {'='.join(pair)}")]
    archive = subprocess.run(["tar", "-C", root, "-c", "."], capture_output=True, timeout=60, check=True).stdout
    _run(["podman", "import", *changes, "-", name], archive)
    python = [Path(sys.prefix), Path(sys.base_prefix)]
    needed = [Path("/usr"), CHECKOUT, *python]
    mounts = [f"{path}:{path}:ro" for path in dict.fromkeys(needed) if not _inside(path, needed)]
    return _complete(root, name, ENVIRONMENT, mounts, sys.executable)


def remove(image: Image) -> None:
    """Take the stand-in out of podman's storage."""
    _run(["podman", "rmi", "--force", image.name])


def real(name: str, folder: Path) -> Image:
    """Turn the image ``name`` of podman's storage into the forms that the other runtimes take."""
    root = folder / "root"
    root.mkdir(parents=True)
    container = _run(["podman", "create", name]).decode().strip()
    try:
        with subprocess.Popen(["podman", "export", container], stdout=subprocess.PIPE) as export:
            unpack = ["tar", "-C", str(root), "--exclude=dev/*", "-x"]
            subprocess.run(unpack, stdin=export.stdout, timeout=300, check=True)
    finally:
        _run(["podman", "rm", container])
    shown = json.loads(_run(["podman", "image", "inspect", name]))
    environment = dict(pair.split("=", 1) for pair in shown[0]["Config"]["Env"])
    return _complete(root, name, environment, [], "python3")


def _inside(path: Path, others: list[Path]) -> bool:
    return any(path != other and path.is_relative_to(other) for other in others)


def _complete(root: Path, name: str, environment: dict[str, str], mounts: list[str], python: str) -> Image:
    text = "".join(f"{key}={value}\n" for key, value in environment.items())
    # Where charliecloud and enroot keep what a Dockerfile's ENV says.
    for file in ("ch/environment", "etc/environment"):
        (root / file).parent.mkdir(exist_ok=True)
        (root / file).write_text(text)
    squashfs = root.with_name("image.sqsh")
    _run(["mksquashfs", str(root), str(squashfs), "-quiet", "-no-progress", "-comp", "lz4"])
    return Image(root, squashfs, name, mounts, python)


def _run(command: list[str], text: bytes = b"") -> bytes:
    done = subprocess.run(command, input=text, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.decode()[-2000:]}"
    return done.stdout


def own_storage(folder: Path) -> Path:
    """Return a storage.conf for hosts that share /var: images from the machine, containers in the host's own /tmp."""
    path = folder / "storage.conf"
    path.write_text(
        '[storage]\ndriver = "overlay"\ngraphroot = "/tmp/containers"\nrunroot = "/run/containers"\n'
        '[storage.options]\nadditionalimagestores = ["/var/lib/containers/storage"]\n'
    )
    return path
