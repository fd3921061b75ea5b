"""Measure the way from an empty Python to a rendered job: seconds, MB downloaded, MB installed.

bench_install.py [WHEEL]      default: the wheel of this checkout, built first

For every Python of this machine from 3.10 on: the wheel and its dependencies are downloaded into an empty cache and
installed into an empty environment, with pip and with uv; then one job is rendered. Last, uv resolves the extras data
and train for Python 3.10 to 3.14, also for those that this machine lacks. Needs uv and the package index.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.pythons import MINORS, interpreters  # noqa: E402

UV = [sys.executable, "-m", "uv"]
# extra -> the oldest Python 3 for it: transformers 5 needs 3.11.
EXTRAS = {"data": 10, "train": 11}
JOB = "name: a\nmodel: Qwen/Qwen-1_8B-Chat\ndata: /d/a.json\noutput: /d/out\ncluster: {gpu: A100-80G}\n"
COLUMNS = ("Python", "with", "MB downloaded", "seconds", "MB installed", "first render, seconds")


def seconds(*words: str | Path, **environ: str) -> float:
    """Run a command and return its seconds; its output is shown if it fails."""
    started = time.perf_counter()
    done = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started


def megabytes(folder: Path) -> float:
    """Return the size of all files below a folder, in MB of a million bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def built(folder: Path) -> Path:
    """Build the wheel of this checkout."""
    seconds(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def measured(python: str, wheel: Path) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield for pip and uv: name, MB downloaded, seconds to install, MB installed, seconds of the first render."""
    for tool in ("pip", "uv"):
        with tempfile.TemporaryDirectory() as name:
            home, wheels = Path(name, "environment"), Path(name, "wheels")
            download = [sys.executable, "-m", "pip", "download", "--no-cache-dir", "--only-binary=:all:"]
            version = subprocess.run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                                     capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
            seconds(*download, "--python-version", version, "-d", wheels, wheel)
            seconds(python, "-m", "venv", "--without-pip", home)
            inside = home / "bin" / "python"
            if tool == "pip":
                took = seconds(sys.executable, "-m", "pip", "--python", inside, "install", "--no-cache-dir", wheel)
            else:
                cache = {"UV_CACHE_DIR": f"{name}/cache", "UV_LINK_MODE": "copy"}
                took = seconds(*UV, "pip", "install", "--python", inside, wheel, **cache)
            installed = megabytes(next((home / "lib").glob("python*")) / "site-packages")
            job = Path(name, "job.yaml")
            job.write_text(JOB)
            first = seconds(home / "bin" / "qwen-job", "render", job, "--target", "slurm")
            yield tool, megabytes(wheels), took, installed, first


def resolved(wheel: Path, extra: str, minor: int) -> int:
    """Return how many packages uv finds for an extra on a Python, for Linux on x86-64."""
    words = [*UV, "pip", "compile", "--quiet", "--python-version", f"3.{minor}"]
    words += ["--python-platform", "x86_64-manylinux_2_28"]
    requirement = f"qwen-job[{extra}] @ {wheel.resolve().as_uri()}"
    done = subprocess.run([*words, "-"], input=requirement, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"qwen-job[{extra}] on Python 3.{minor}: {done.stderr[-2000:]}")
    return sum("==" in line and not line.lstrip().startswith("#") for line in done.stdout.splitlines())


def main(arguments: list[str]) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(arguments[0]) if arguments else built(Path(folder))
        size, load = wheel.stat().st_size / 1e6, os.getloadavg()[0]
        print(f"{wheel.name}: {size:.2f} MB; {os.cpu_count()} CPUs, load {load:.1f}\n")
        print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
        for minor, python in interpreters().items():
            for tool, *figures in measured(python, wheel):
                print(f"| 3.{minor} | {tool} | {' | '.join(f'{figure:.1f}' for figure in figures)} |", flush=True)
        print("\npackages that an extra needs, this one included:")
        for extra, oldest in EXTRAS.items():
            counts = {f"3.{minor}": resolved(wheel, extra, minor) for minor in MINORS if minor >= oldest}
            print(f"  [{extra}]  " + "  ".join(f"{version}: {count}" for version, count in counts.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
