"""Packages for a machine that has torch and no network: packed here, installed there without pip's index.

The wheels are those of constraints.txt; DeepSpeed has none, so one is built, without its compiled operators. They go
into a folder of the checkout that git ignores, and with it to the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu_day.day import ROOT

FOLDER = ROOT / ".gpu-wheels"
SITE = Path("/tmp/qwen-job-gpu-site")  # outside the checkout: a copy of it need not be writable
ACTIVE = "QWEN_JOB_GPU_BEGAN"  # set in a process that uses the wheels: when the one before it began (monotonic)
LIMIT = 60 * 2**20
# What the trainer and the peers import and a machine made for torch may lack or have in another version.
NAMES = (
    "accelerate", "annotated-types", "awkward", "awkward_cpp", "einops", "fla-core==0.6.0", "gigatoken", "hjson",
    "liger-kernel",
    "msgpack", "py-cpuinfo", "pydantic", "pydantic_core", "safetensors", "tokenizers", "transformers",
    "typing_extensions", "typing-inspection",
)  # fmt: skip
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


def pack(python: str = "3.12", folder: Path = FOLDER) -> list[str]:
    """Download the wheels for ``python`` into ``folder``; returns what to tell the user.

    Raises:
        SystemExit: pip failed, or they are too large to be carried.
    """
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    lowered = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    wanted = []
    for name in NAMES:
        version = lowered.get(name.lower().replace("_", "-"))
        wanted.append(f"{name}=={version}" if version else name)
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    common = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
    _pip("download", *common, "--dest", str(folder), *wanted)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), f"deepspeed=={lowered['deepspeed']}")
    (folder / "python").write_text(python)
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    if size > LIMIT:
        raise SystemExit(f"{folder}: {size / 2**20:.0f} MiB of wheels; {LIMIT / 2**20:.0f} can be carried")
    return [f"{len(list(folder.glob('*.whl')))} wheels, {size / 2**20:.0f} MiB, in {folder}"]


def _pip(*words: str) -> None:
    environment = {**os.environ, "DS_BUILD_OPS": "0"}
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"pip {words[0]} failed")


def activate(folder: Path = FOLDER, site: Path = SITE) -> str | None:
    """Where there are wheels, install them beside the machine's packages and start this process again with them.

    Returns why wheels are not used. Where they are, it does not return.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels or os.environ.get(ACTIVE):
        return None
    mine, theirs = f"{sys.version_info.major}.{sys.version_info.minor}", (folder / "python").read_text()
    if mine != theirs:
        return f"{folder} is for Python {theirs}, and this is {mine}: using the packages of this environment"
    began = time.monotonic()
    words = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--quiet", "--target", str(site)]
    _pip("install", *words, *map(str, wheels))
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    os.environ.update({"PYTHONPATH": path, ACTIVE: str(began)})
    return os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu_day", *sys.argv[1:]])
