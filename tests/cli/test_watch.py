"""``qwen-job watch`` on a terminal: one frame in the place of the other, and what runs stays in sight."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path

import pytest

from qwen_job.cli.curves import Curves, curve
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


def steps(run: Path, *numbers: int) -> None:
    lines = [{"type": "step", "step": n, "loss": 4.0 / n, "tokens_per_second": 100.0 + n} for n in numbers]
    with (run / "metrics.jsonl").open("a") as out:
        out.write("".join(json.dumps(line) + "\n" for line in lines))


def running(run: Path) -> list[Found]:
    return [Found(Entry("slurm", "7", "chat\x1b[31m", "running", run=str(run)), Progress())]


def test_a_curve_falls_from_the_top_to_the_bottom() -> None:
    assert curve([8, 7, 6, 5, 4, 3, 2, 1], 8, 1) == ["█▇▆▅▄▃▂▁"]
    assert curve([4.0, 1.0], 80, 2) == ["█ ", "█▁"]
    assert curve([1.0] * 50, 10, 1) == ["▄" * 10]
    assert curve([], 10, 1) == []
    wide = curve([float(n) for n in range(10_000)], 60, 3)
    assert [len(line) for line in wide] == [60] * 3 and wide[0].endswith("█") and wide[2].startswith("▁")


@pytest.mark.parametrize(("columns", "rows", "height"), [(200, 40, 4), (79, 12, 4), (30, 9, 3), (20, 5, 1)])
def test_curves_fit_a_narrow_and_a_wide_terminal(tmp_path: Path, columns: int, rows: int, height: int) -> None:
    steps(tmp_path, *range(1, 500))
    lines = Curves("utf-8").lines(running(tmp_path), columns, rows)
    assert len(lines) == 2 + 2 * height <= rows
    assert max(map(len, lines)) <= columns and all("\x1b" not in line for line in lines)
    assert any("loss" in line for line in lines) or height == 2


@pytest.mark.parametrize(("columns", "rows"), [(10, 40), (80, 3)])
def test_without_room_there_is_no_curve(tmp_path: Path, columns: int, rows: int) -> None:
    steps(tmp_path, *range(1, 50))
    assert Curves("utf-8").lines(running(tmp_path), columns, rows) == []


def test_steps_trained_again_after_a_restart_are_drawn_once(tmp_path: Path) -> None:
    curves = Curves("utf-8")
    steps(tmp_path, *range(1, 30))
    curves.lines(running(tmp_path), 80, 24)
    steps(tmp_path, *range(20, 41))
    assert "steps 1 to 40" in curves.lines(running(tmp_path), 80, 24)[1]
    assert len(curves._steps(str(tmp_path))) == 40


def test_a_terminal_without_blocks_gets_plain_characters(tmp_path: Path) -> None:
    steps(tmp_path, *range(1, 50))
    text = "\n".join(Curves("ascii").lines(running(tmp_path), 80, 24))
    assert text.isascii() and "@" in text
    assert Curves("utf-8").lines(running(tmp_path / "none"), 80, 24) == []
