"""The notebook of the demo, cell by cell, on the run that the other tests of the demo made (it adds 10 s)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.steps import CHECKOUT, environment

# Runs the cells as a kernel does: one after the other, with the names of those before.
KERNEL = "import json, sys\nnames = {}\nfor cell in json.load(sys.stdin): exec(compile(cell, 'cell', 'exec'), names)"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((CHECKOUT / "docs" / "demo.ipynb").read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_committed_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert len({cell["id"] for kind in ("code", "markdown") for cell in cells(kind)}) == 10


@pytest.mark.train
@pytest.mark.slow
def test_the_notebook_plans_trains_and_talks(demo: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = demo
    sources = ["".join(cell["source"]) for cell in cells("code")]
    (where,) = [index for index, cell in enumerate(cells("code")) if cell["metadata"].get("tags") == ["parameters"]]
    sources[where] = f"run = {str(run)!r}"
    before = (run / "metrics.jsonl").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps(sources),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "qwen2-tiny: 2 processes, " in done.stdout
    losses = [float(loss) for loss in re.findall(r"^step +\d+  loss ([\d.]+) ", done.stdout, re.MULTILINE)]
    assert 10 <= len(losses) <= 12 and losses[-1] < losses[0] / 2
    assert "你好！我是 qwen-job 训练的小助手，很高兴为你服务。" in done.stdout
    # The run is complete, so nothing was trained again.
    assert (run / "metrics.jsonl").read_bytes() == before
