"""An installed wheel finds its templates, configs and chart inside itself, on every supported Python."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.package.conftest import Built
from tests.support import optional
from tests.support.pythons import interpreters

JOB = "name: a\nmodel: Qwen/Qwen-1_8B-Chat\ndata: /d/a.json\noutput: /d/out\ncluster: {gpu: A100-80G}\n"


def test_the_wheel_renders_what_the_checkout_renders(built: Built, checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(built.wheel).extractall(installed)
    (tmp_path / "job.yaml").write_text(JOB)

    def printed(source: Path, *words: str) -> bytes:
        # -P keeps the current folder, and with it the checkout, off the path.
        command = [sys.executable, "-P", "-m", "qwen_job", *words]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True).stdout

    for target in ("slurm", "kubernetes", "helm", "local"):
        words = ("render", "job.yaml", "-t", target)
        assert printed(installed, *words) == printed(checkout, *words) != b""
    assert (installed / "qwen_job" / "_resources" / "charts" / "qwen-job" / "Chart.yaml").exists()
    assert len(printed(installed, "docs", "--json")) > 1000
    for words in (["docs", "--json"], ["docs", "training", "--language", "zh"], ["docs", "changes"]):
        assert printed(installed, *words) == printed(checkout, *words)


@pytest.mark.slow
@pytest.mark.parametrize("minor", sorted(interpreters()))
def test_the_first_hour_works_in_an_empty_environment(built: Built, tmp_path: Path, minor: int) -> None:
    """Install the wheel with what it depends on from the package index, and nothing else (2 s with a warm cache)."""
    if importlib.util.find_spec("uv") is None:
        optional.skip("tools", "uv is not installed")
    home = tmp_path / "environment"
    subprocess.run([interpreters()[minor], "-m", "venv", "--without-pip", home], check=True, timeout=120)
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", home / "bin" / "python"]
    subprocess.run([*install, built.wheel], check=True, timeout=300)
    environ = {"PATH": f"{home}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(*words: str) -> str:
        done = subprocess.run(
            ["qwen-job", *words], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("init", "job.yaml")
    run("init", "demo.yaml", "--from", "demo")
    data = next((home / "lib").glob("python*/site-packages/qwen_job/_resources/configs/data/demo.json"))
    assert run("plan", "demo.yaml").startswith("Fits")
    assert run("plan", "job.yaml", "--samples", "100", "--tokens-per-sample", "100").startswith("Fits")
    assert run("render", "job.yaml", "--target", "slurm").startswith("#!/bin/bash")
    assert "<=32 tokens" in run("data", "check", str(data))
    assert run("docs", "training").startswith("# Training")
