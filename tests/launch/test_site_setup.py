"""slurm.setup for real: what fails is named, and what is asked to leave has not failed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.jobs import bundle


def start(folder: Path, *setup: str) -> subprocess.Popen[str]:
    """Start a node's script in a process group of its own, as Slurm starts a step's task."""
    run = folder / "run"
    text = bundle(folder, "slurm", output=str(run), slurm={"setup": list(setup)}).text
    (run / "launch").mkdir(parents=True)
    node = run / "launch" / "node.sh"
    node.write_text(text.split("QWEN_JOB_NODE_END'\n")[1].split("\nQWEN_JOB_NODE_END")[0] + "\n")
    words = ["bash", str(node), "0", "node1", "61001", "1-0"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("whole_group", [True, False])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 160), (signal.SIGTERM, 143), (signal.SIGHUP, 160)])
def test_a_signal_during_the_setup_is_no_failure_of_it(
    tmp_path: Path, number: signal.Signals, code: int, whole_group: bool
) -> None:
    # Only bash itself is signalled: the line then fails for another reason, after the signal.
    line = f"bash -c 'touch {tmp_path}/began; exec sleep {120 if whole_group else 1}'"
    process = start(tmp_path, line, "false")
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "slurm.setup" in errors) == (code, False), errors
    assert (tmp_path / "run" / "launch" / "exit.1-0.0").read_text().split()[0] == str(code)


@pytest.mark.parametrize("line", ["source /nowhere/activate", "false", "cd /nowhere", "exit 3"])
def test_a_line_that_fails_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    process = start(tmp_path, "true", line)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "slurm.setup: line 2 ended with exit code" in errors and line in errors


def test_what_may_fail_in_a_login_shell_may_fail(tmp_path: Path) -> None:
    (tmp_path / "vars.sh").write_text("false\n[ -n $1 ] && false\nreturn 0\n")
    lines = [f"source {tmp_path}/vars.sh", "[ -f /nowhere ] && source /nowhere", "false | true", "export A=$(false)"]
    process = start(tmp_path, *lines, "if false; then true; fi", "false || true", "echo the end >&2", "exit 9")
    _, errors = process.communicate(timeout=60)
    assert "the end" in errors and "line 8 ended with exit code 9" in errors
