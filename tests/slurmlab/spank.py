"""Give a lab's srun the options of pyxis, through the small plugin in pyxis.c."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.slurmlab.hosts import LabError
from tests.slurmlab.lab import Lab

SOURCE = Path(__file__).with_name("pyxis.c")


def missing_pyxis() -> str:
    """Return what this machine lacks to build the plugin as a message, or "" if nothing."""
    lacking = [tool for tool in ("gcc", "mksquashfs") if not shutil.which(tool)]
    if not Path("/usr/include/slurm/spank.h").exists():
        lacking.append("slurm/spank.h")
    packages = "gcc libc6-dev libslurm-dev squashfs-tools"
    return f"pyxis lacks {', '.join(lacking)}: apt-get install {packages}" if lacking else ""


@contextmanager
def pyxis(lab: Lab) -> Iterator[Lab]:
    """Give the lab's srun the options of pyxis; every srun and every step rereads plugstack.conf."""
    plugin, stack = lab.root / "etc/pyxis.so", lab.root / "etc/slurm/plugstack.conf"
    compiler = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(plugin), str(SOURCE)]
    done = subprocess.run(compiler, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise LabError(f"{SOURCE}: {done.stderr}")
    stack.write_text(f"required {plugin}\n")
    try:
        yield lab
    finally:
        stack.unlink(missing_ok=True)
