"""How long the demo takes from its command to its first training step: in a container, and as a bare process.

    python benchmarks/bench_image_start.py [IMAGE] [RUNS]

Both sides run the same job on this machine, in turn; the container has a read-only root, no network and a foreign uid.
The median of each side is printed, and the difference, whose goal is 15 s.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL_SECONDS = 15.0
WORDS = ["submit", "--target", "local", "--set", "train.max_steps=2"]


def main(image: str, runs: int) -> None:
    """Time both sides, ``runs`` times in turn."""
    seconds: dict[str, list[float]] = {"bare": [], "container": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(runs):
            for side, command in (("bare", bare), ("container", lambda folder: container(image, folder))):
                seconds[side].append(first_step(Path(scratch) / f"{side}{number}", command))
                print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr)
    middle = {side: statistics.median(values) for side, values in seconds.items()}
    difference = middle["container"] - middle["bare"]
    print(f"| bare process | {middle['bare']:.1f} s |\n| container | {middle['container']:.1f} s |")
    print(f"| difference | {difference:+.1f} s{'' if difference <= GOAL_SECONDS else ', **missed**'} |")


def first_step(folder: Path, command: Callable[[Path], list[str | Path]]) -> float:
    """Run the demo below ``folder`` and return the seconds from its command to the end of its first step."""
    folder.parent.chmod(0o755)
    folder.mkdir()
    folder.chmod(0o777)
    shutil.copytree(ROOT / "configs", folder / "configs")
    started = time.time()
    done = subprocess.run(command(folder), capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return float(next(line["time"] for line in lines if line["type"] == "step")) - started


def bare(folder: Path) -> list[str | Path]:
    """Return the command of this checkout's environment."""
    job = folder / "configs" / "jobs" / "demo.yaml"
    return [sys.executable, "-m", "qwen_job", WORDS[0], job, *WORDS[1:], "--set", f"output={folder}/run"]


def container(image: str, folder: Path) -> list[str | Path]:
    """Return the command that does the same in the image."""
    options = ["-v", f"{folder}:/job", "-w", "/tmp"]
    job = "/job/configs/jobs/demo.yaml"
    start = ROOT / "scripts" / "image" / "run"
    return [start, image, *options, "--", WORDS[0], job, *WORDS[1:], "--set", "output=/job/run"]


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost/qwen-job:cpu", int(sys.argv[2]) if len(sys.argv) > 2 else 3)
