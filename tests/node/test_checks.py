"""The wrong image, driver or GPU at the start of a job: one line and exit code 5, before torch says anything."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

AMPERE = {"set": "ampere", "cuda": "13.0", "minimum_driver": "580.65.06", "architectures": ["sm_80", "sm_90"]}


class Node:
    """A machine whose nvidia-smi and libcuda.so.1 are ours, and the image that it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (folder / "image.json").write_text(json.dumps(AMPERE))
        # Any library serves: only nvidia-smi is asked, but libcuda must be there to be loaded.
        (self.bin / "libcuda.so.1").symlink_to(library("m"))

    def gpu(self, name: str, capability: str, driver: str) -> None:
        (self.bin / "nvidia-smi").write_text(f"#!/bin/sh\necho '0, {name}, {capability}, {driver}'\n")
        (self.bin / "nvidia-smi").chmod(0o755)

    def launch(self, **settings: object) -> subprocess.CompletedProcess[str]:
        config = self.folder / "train.yaml"
        config.write_text(yaml.safe_dump({"device": "cuda", "output_dir": str(self.folder / "run"), **settings}))
        env = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX")}
        env |= {"PATH": str(self.bin), "LD_LIBRARY_PATH": str(self.bin), "QWEN_JOB_CACHE": str(self.folder / "cache")}
        env |= {"QWEN_JOB_IMAGE": str(self.folder / "image.json")}
        command = [sys.executable, "-m", "qwen_job.node.launcher", "--", "--config", str(config)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_a_python_without_the_training_stack_is_named(tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(yaml.safe_dump({"device": "cpu", "output_dir": str(tmp_path / "run")}))
    code = (
        "import sys; from importlib import machinery\n"
        "real = machinery.PathFinder.find_spec\n"
        "hidden = ('torch', 'transformers', 'deepspeed')\n"
        "machinery.PathFinder.find_spec = lambda name, *more: None if name in hidden else real(name, *more)\n"
        f"from qwen_job.node.launcher import main; sys.exit(main(['--', '--config', {str(config)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    absent = "torch, transformers, deepspeed: pip install torch 'qwen-job[train]'"
    assert f"{sys.executable} has no {absent}" in refusal(done)


def library(name: str) -> Path:
    found = ctypes.util.find_library(name)
    assert found
    loaded = ctypes.CDLL(found)
    del loaded
    maps = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split()[-1]) for line in maps if line.endswith(found))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 5, done.stderr[-2000:]
    (_start, line) = [line for line in done.stderr.splitlines() if line.startswith("qwen-job: ")]
    return line


def test_a_gpu_that_the_image_has_no_kernels_for(node: Node) -> None:
    node.gpu("Tesla V100-SXM2-32GB", "7.0", "580.95.05")
    wanted = "this image carries sm_80, sm_90; the node has V100-SXM2-32GB (sm_70): use SET=v100"
    assert refusal(node.launch()) == f"qwen-job: {wanted}"


def test_no_driver(node: Node) -> None:
    (node.bin / "libcuda.so.1").unlink()
    assert "no NVIDIA driver: start the container with GPUs" in refusal(node.launch())


def test_a_driver_older_than_the_cuda_inside(node: Node) -> None:
    node.gpu("NVIDIA A100-SXM4-80GB", "8.0", "535.104.05")
    line = refusal(node.launch())
    assert "needs driver 580.65.06 or newer; the node has 535.104.05: update the driver or use SET=cuda12" in line


def test_a_driver_that_does_not_answer_well(node: Node) -> None:
    (node.bin / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed: no driver'\nexit 9\n")
    (node.bin / "nvidia-smi").chmod(0o755)
    assert "nvidia-smi failed: NVIDIA-SMI has failed: no driver" in refusal(node.launch())


@pytest.mark.train
@pytest.mark.parametrize(
    ("setting", "named"), [({"torch_compile": True}, "torch_compile: true"), ({"fused_loss": "liger"}, "liger")]
)
def test_kernels_compiled_at_run_time_without_a_compiler(node: Node, setting: dict[str, object], named: str) -> None:
    node.gpu("NVIDIA A100-SXM4-80GB", "8.0", "580.95.05")
    line = refusal(node.launch(**setting))
    assert named in line
    assert "gcc is missing: use the image of a set that has a compiler" in line


@pytest.mark.train
def test_a_node_that_fits_starts_the_trainer(node: Node) -> None:
    node.gpu("NVIDIA A100-SXM4-80GB", "8.0", "580.95.05")
    done = node.launch()
    assert done.returncode == 3 and "train.yaml: model: is missing" in done.stderr
