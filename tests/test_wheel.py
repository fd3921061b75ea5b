"""An installed wheel finds its templates, configs and chart inside itself."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

JOB = "name: a\nmodel: Qwen/Qwen-1_8B-Chat\ndata: /d/a.json\noutput: /d/out\ncluster: {gpu: A100-80G}\n"


def test_the_wheel_renders_what_the_checkout_renders(checkout: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(checkout)]
    subprocess.run(build, check=True, timeout=300)
    installed = tmp_path / "installed"
    zipfile.ZipFile(next(tmp_path.glob("qwen_job-*.whl"))).extractall(installed)
    (tmp_path / "job.yaml").write_text(JOB)

    def rendered(source: Path, target: str) -> bytes:
        # -P keeps the current folder, and with it the checkout, off the path.
        words = [sys.executable, "-P", "-m", "qwen_job", "render", "job.yaml", "-t", target]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        return subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True).stdout

    for target in ("slurm", "kubernetes", "helm", "local"):
        assert rendered(installed, target) == rendered(checkout, target) != b""
    resources = installed / "qwen_job" / "_resources"
    assert (resources / "charts" / "qwen-job" / "Chart.yaml").exists()
    assert list((resources / "slurm").glob("*.sbatch"))
    assert (resources / "docs" / "training.zh-CN.md").exists()
