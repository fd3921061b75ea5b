import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.node.driver import NodeGpu, parse_query, probe

V100 = "0, Tesla V100-SXM2-32GB, 7.0, 535.104.05"
LIBCUDA = """
#include <string.h>
int cuInit(unsigned flags) { return %(init)d; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Tesla V100-SXM2-32GB", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 7 : 0; return 0; }
"""


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def nvidia_smi(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def with_libcuda(folder: Path, init: int, code: str) -> str:
    """Run Python code in a process that finds a real shared library called libcuda.so.1, and return what it printed."""
    source = folder / "cuda.c"
    source.write_text(LIBCUDA % {"init": init})
    compile_it = ["gcc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(compile_it, check=True, env=os.environ | {"PATH": "/usr/local/bin:/usr/bin:/bin"})
    env = os.environ | {"LD_LIBRARY_PATH": str(folder), "PATH": str(folder)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr


def test_reads_a_line_a_gpu() -> None:
    driver = parse_query(V100 + "\n1, NVIDIA H100 80GB HBM3, 9.0, 535.104.05\n")
    assert driver.version == "535.104.05"
    assert driver.gpus[1] == NodeGpu(1, "NVIDIA H100 80GB HBM3", (9, 0))


@pytest.mark.parametrize("text", ["No devices were found", "", "0, A, B, C, D"])
def test_refuses_what_is_no_gpu(text: str) -> None:
    with pytest.raises(EnvironmentFault, match="nvidia-smi"):
        parse_query(text)


@pytest.mark.usefixtures("no_tools")
def test_a_missing_driver_is_one_line_that_says_how_to_give_gpus() -> None:
    with pytest.raises(EnvironmentFault, match=r"no NVIDIA driver.*--gpus all"):
        probe()


def test_passes_on_what_nvidia_smi_says(no_tools: Path) -> None:
    nvidia_smi(no_tools, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(EnvironmentFault, match=r"^nvidia-smi failed: Failed to initialize NVML: Driver/library"):
        probe()


def test_a_driver_too_old_to_tell_the_capability_still_tells_its_version(no_tools: Path) -> None:
    nvidia_smi(
        no_tools,
        """case "$*" in
        *compute_cap*) echo 'Field "compute_cap" is not a valid field to query.'; exit 2;;
        *) echo '0, Tesla V100-SXM2-32GB, GPU-4b5c, 450.80.02';;
        esac""",
    )
    code = "from qwen_job.node.driver import probe; print(probe())"
    printed = with_libcuda(no_tools, 0, code)
    assert "version='450.80.02'" in printed
    assert "capability=None" in printed


def test_libcuda_missing_beside_nvidia_smi_is_told(no_tools: Path) -> None:
    nvidia_smi(no_tools, f"echo '{V100}'")
    with pytest.raises(EnvironmentFault, match="must contain 'compute'"):
        probe()


def test_asks_libcuda_itself_where_nvidia_smi_is_not_mounted(tmp_path: Path) -> None:
    printed = with_libcuda(tmp_path, 0, "from qwen_job.node.driver import probe; print(probe())")
    assert "cuda=(12, 8)" in printed
    assert "capability=(7, 0)" in printed


def test_names_the_fabric_manager(tmp_path: Path) -> None:
    printed = with_libcuda(tmp_path, 802, "from qwen_job.node.driver import probe; probe()")
    assert "cuInit failed (802): the NVSwitch fabric is not ready: start nvidia-fabricmanager" in printed
