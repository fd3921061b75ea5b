"""The page's example over seeds, trained for real: two runs of a tiny model in one process each (20 s)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.steps import CHECKOUT, environment
from tests.support.pages import blocks

pytestmark = [pytest.mark.train, pytest.mark.slow]


def test_the_example_over_seeds_trains_each_of_them(tmp_path: Path) -> None:
    code, *_ = blocks(CHECKOUT / "docs" / "python.md", "python")
    ((command, *_), *_) = (block.splitlines() for block in blocks(CHECKOUT / "docs" / "python.md", "sh"))
    subprocess.run(command.split(), cwd=tmp_path, env=environment(), check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = re.findall(r"^seed (\d): exit code 0, loss ([\d.]+) -> ([\d.]+)$", done.stdout, re.MULTILINE)
    assert [seed for seed, *_ in lines] == ["1", "2"]
    assert all(float(last) < float(first) for _, first, last in lines) and lines[0][1:] != lines[1][1:]
