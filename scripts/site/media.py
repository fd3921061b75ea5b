"""Make what the site shows of a run:  python scripts/site/media.py [FOLDER]   (build/media; a few minutes)

Plays the demo in a terminal of its own and records it (asciicast v2), and takes pictures of the report of that run in
light and dark, wide and narrow. Needs the environment of `make demo` and a Chromium. None of it is kept in git.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.site import tour  # noqa: E402
from tests.support.browser import see  # noqa: E402

COLUMNS, ROWS = 110, 32
WIDE, NARROW = 1100, 420


def record(words: list[str], cast: Path) -> None:
    """Run a command in a terminal and write what it shows, with the times, as asciicast v2.

    Raises:
        CalledProcessError: the command has failed.
    """
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    started = time.monotonic()
    process = subprocess.Popen(
        words, cwd=ROOT, env=environment, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    with cast.open("w", encoding="utf-8") as file:
        head = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "qwen-job: the demo"}
        file.write(json.dumps(head) + "\n")
        pending = b""
        while part := _read(mine):
            pending += part
            text = pending.decode("utf-8", "ignore")
            pending = pending[len(text.encode()) :]
            file.write(json.dumps([round(time.monotonic() - started, 3), "o", text], ensure_ascii=False) + "\n")
    os.close(mine)
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, words)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the last process has closed its end
        return b""


def main() -> int:
    """Make the recording and the pictures."""
    parser = argparse.ArgumentParser(description="Record the demo and take pictures of its report.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "media")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qwen-job-media-") as scratch:
        run = Path(scratch) / "demo"
        record(["scripts/demo.sh", str(run)], folder / tour.CAST)
        for name, width, dark in zip(tour.PICTURES, (WIDE, WIDE, NARROW), (False, True, False), strict=True):
            seen = see(f"file://{run}/report.html", Path(scratch) / name, width=width, dark=dark)
            shutil.copy(seen.picture, folder / name)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
