"""Shipped files are found from a checkout and from an install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.resources import resource


@pytest.mark.parametrize("parts", [("configs", "jobs"), ("charts",), ("slurm",)])
def test_a_checkout_s_own(checkout: Path, parts: tuple[str, ...]) -> None:
    assert resource(*parts) == checkout.joinpath(*parts) and resource(*parts).is_dir()


def test_an_install_s_own_win(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "qwen_job" / "_resources" / "configs").mkdir(parents=True)
    for name in ("__init__.py", "resources.py"):
        shutil.copy(checkout / "qwen_job" / name, tmp_path / "qwen_job" / name)
    code = "from qwen_job.resources import resource; print(resource('configs'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stdout == f"{tmp_path}/qwen_job/_resources/configs\n"
