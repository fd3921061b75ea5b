"""``qwen-job watch`` on a terminal: one frame in the place of the other, and what runs stays in sight."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest

from qwen_job.cli.status import fitting
from qwen_job.launch.backend import Entry
from qwen_job.launch.find import Found
from qwen_job.run.progress import Progress

SQUEUE = """#!/bin/bash
echo '{"jobs": [{"job_id": 7, "name": "grid", "job_state": "COMPLETED"}]}'
"""


def jobs(*states: str) -> list[Found]:
    return [Found(Entry("slurm", f"7_{n}", "grid", state), Progress()) for n, state in enumerate(states)]


def test_what_runs_is_shown_first_where_there_is_no_room_for_all() -> None:
    found = jobs(*["completed"] * 20, "running", *["pending"] * 30, "running")
    lines = fitting(found, 8).splitlines()
    assert len(lines) == 8
    assert {"7_20", "7_51"} <= {line.split()[0] for line in lines}
    assert "46 more" in lines[-1] and "20 completed" in lines[-1] and "26 pending" in lines[-1]
    assert fitting(found, None).count("\n") == fitting(found, 60).count("\n") == 52


@pytest.mark.parametrize("no_colour", ["1", ""])
def test_a_frame_takes_the_place_of_the_one_before_also_without_colours(tmp_path: Path, no_colour: str) -> None:
    for name, text in {"squeue": SQUEUE, "sbatch": "#!/bin/bash\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "TERM": "xterm",
        "HOME": str(tmp_path),
        "LINES": "10",
        "COLUMNS": "60",
    }
    environment |= {"NO_COLOR": no_colour} if no_colour else {}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "qwen_job", "watch", "-t", "slurm"], environment)
    seen = b""
    try:
        while part := os.read(terminal, 4096):
            seen += part
    except OSError:
        pass  # the terminal's other side is closed
    os.waitpid(pid, 0)
    assert seen.startswith(b"\x1b[2J\x1b[1;1H") and b"completed" in seen, seen
