"""Attempts without a newer checkpoint are counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.errors import NoProgress
from qwen_job.node.attempts import begin, end
from qwen_job.run.manifest import newest_step


def save(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def test_the_attempt_after_three_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for _ in range(3):
        begin(tmp_path, 3)
    with pytest.raises(NoProgress, match="3 attempts in a row wrote no checkpoint"):
        begin(tmp_path, 3)
    begin(tmp_path, 3)  # restarted by a person


def test_a_newer_checkpoint_resets_the_count(tmp_path: Path) -> None:
    for step in range(1, 6):
        begin(tmp_path, 2)
        save(tmp_path, step)
    begin(tmp_path, 2)
    end(tmp_path, 137, signalled=False)
    begin(tmp_path, 2)
    with pytest.raises(NoProgress, match="newer than step 5"):
        begin(tmp_path, 2)


@pytest.mark.parametrize(("code", "signalled"), [(160, False), (143, True)])
def test_an_attempt_stopped_from_outside_does_not_count(tmp_path: Path, code: int, signalled: bool) -> None:
    for _ in range(8):
        begin(tmp_path, 1)
        end(tmp_path, code, signalled=signalled)


def test_a_final_exit_code_resets_the_count(tmp_path: Path) -> None:
    begin(tmp_path, 1)
    end(tmp_path, 4, signalled=False)
    begin(tmp_path, 1)


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "step-9").mkdir()
    (tmp_path / "checkpoints" / "step-9" / "manifest.json").touch()
    save(tmp_path, 12)
    (tmp_path / "checkpoints" / "step-12").rename(tmp_path / "checkpoints" / "step-tmp")
    assert newest_step(tmp_path) == 3


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"step": null, "fruitless": 1}'])
def test_a_damaged_count_starts_anew(tmp_path: Path, broken: str) -> None:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "tries.json").write_text(broken)
    begin(tmp_path, 1)


def test_storage_that_cannot_be_written_is_not_this_ones_to_report(tmp_path: Path) -> None:
    (tmp_path / "launch").touch()
    begin(tmp_path, 1)
    end(tmp_path, 0, signalled=False)


def test_the_launcher_ends_with_the_final_code(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(f"output_dir: {tmp_path}\n")
    begin(tmp_path, 1)
    words = [sys.executable, "-m", "qwen_job.node.launcher", "--max_without_progress", "1"]
    done = subprocess.run(
        [*words, "--", "--config", str(tmp_path / "train.yaml")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, "retry.max_without_progress" in done.stderr) == (8, True)
