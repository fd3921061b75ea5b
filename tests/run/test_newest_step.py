"""The newest checkpoint is the same to Python and to the batch script, whatever the folder holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from qwen_job.run.manifest import newest, newest_step
from tests.run.test_manifest import checkpoint

SCRIPT = Path(__file__).parents[1] / "golden" / "one-node" / "slurm" / "one-node.sbatch"


def by_shell(run: Path) -> int:
    function = re.search(r"^newest_step\(\) \{$.*?^\}$", SCRIPT.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert function is not None
    code = f"run=$1\n{function[0]}\nnewest_step"
    done = subprocess.run(["bash", "-c", code, "bash", run], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def manifest(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)


def test_both_say_that_there_is_none(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    assert by_shell(tmp_path) == -1


def test_both_order_by_number(tmp_path: Path) -> None:
    for step in (9, 10):
        checkpoint(tmp_path / "checkpoints", step)
    found, _ = newest(tmp_path / "checkpoints")
    assert found is not None
    assert newest_step(tmp_path) == by_shell(tmp_path) == found.step == 10


@pytest.mark.parametrize("name", ["step-11", ".step-11.partial", "step-11.partial", "step-x", "step-\u0663", "best-11"])
def test_both_pass_over_what_is_no_complete_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint(tmp_path / "checkpoints", 9)
    manifest(tmp_path / "checkpoints" / name, "" if name == "step-11" else "{}")
    (tmp_path / "checkpoints" / "step-12").mkdir()
    assert newest_step(tmp_path) == by_shell(tmp_path) == 9


def test_a_manifest_damaged_later_counts_as_progress_and_is_not_resumed_from(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoints", 9)
    manifest(tmp_path / "checkpoints" / "step-10", "{torn")
    found, _ = newest(tmp_path / "checkpoints")
    assert found is not None
    assert newest_step(tmp_path) == by_shell(tmp_path) == 10
    assert found.step == 9
