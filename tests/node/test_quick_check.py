import json
import os
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.node.driver import Driver, NodeGpu
from qwen_job.node.image import Image, image_sets, installed_image, set_for
from qwen_job.node.quick_check import check_driver, check_kernels, quick_check, require, shared_memory

AMPERE, V100 = (next(i for i in image_sets() if i.set == name) for name in ("ampere", "v100"))


def gpu(name: str, major: int, minor: int) -> NodeGpu:
    return NodeGpu(0, name, (major, minor))


def test_a_v100_under_the_ampere_set_is_named_with_its_set() -> None:
    with pytest.raises(EnvironmentFault) as fault:
        check_kernels(AMPERE, gpu("Tesla V100-SXM2-32GB", 7, 0))
    wanted = "this image carries sm_80, sm_90; the node has V100-SXM2-32GB (sm_70): use SET=v100"
    assert str(fault.value) == wanted


def test_a_gpu_that_no_set_serves() -> None:
    with pytest.raises(EnvironmentFault, match=r"Tesla|P100.*\(sm_60\): no set has kernels for it"):
        check_kernels(V100, gpu("Tesla P100-PCIE-16GB", 6, 0))


@pytest.mark.parametrize(
    ("image", "capability", "runs"),
    [
        (AMPERE, (8, 0), True),
        (AMPERE, (8, 9), True),  # compiled code runs on a higher minor number of its generation
        (AMPERE, (12, 0), True),  # PTX
        (AMPERE, (7, 5), False),
        (V100, (7, 0), True),
        (Image(None, "13.0", None, ("sm_86",)), (8, 0), False),
        (Image(None, "13.0", None, None), (3, 5), True),  # outside an image nothing is known
    ],
)
def test_binary_and_ptx_compatibility(image: Image, capability: tuple[int, int], runs: bool) -> None:
    assert image.runs_on(capability) is runs


def test_the_set_for_a_gpu_is_the_one_compiled_for_it() -> None:
    assert [set_for(c) for c in ((7, 0), (8, 0), (9, 0), (6, 0))] == ["v100", "ampere", "ampere", None]


def test_a_driver_older_than_the_cuda_inside() -> None:
    driver = Driver("535.104.05", None, (gpu("A100", 8, 0),))
    with pytest.raises(EnvironmentFault) as fault:
        check_driver(AMPERE, driver)
    assert str(fault.value) == (
        "this image carries CUDA 13.0, which needs driver 580.65.06 or newer; the node has 535.104.05: "
        "update the driver or use SET=cuda12 (CUDA 12.8)"
    )


@pytest.mark.parametrize(
    ("version", "name", "capability", "advice"),
    [
        ("535.104.05", "A100", (8, 0), "update the driver or use SET=cuda12 (CUDA 12.8)"),
        ("570.86.15", "H100", (9, 0), "update the driver or use SET=cuda12 (CUDA 12.8)"),
        ("535.104.05", "V100", (7, 0), "update the driver or use SET=v100 (CUDA 12.8)"),
        ("470.57.02", "A100", (8, 0), "update the driver"),
    ],
)
def test_the_set_for_an_older_driver_has_kernels_for_the_gpu(
    version: str, name: str, capability: tuple[int, int], advice: str
) -> None:
    with pytest.raises(EnvironmentFault) as fault:
        check_driver(AMPERE, Driver(version, None, (gpu(name, *capability),)))
    assert str(fault.value).endswith(f"the node has {version}: {advice}")


@pytest.mark.parametrize("version", ["525.60.13", "535.104.05", "550.54.15", "570.86.15", "580.65.06"])
def test_the_set_for_older_drivers_runs_on_all_of_them(version: str) -> None:
    cuda12 = next(image for image in image_sets() if image.set == "cuda12")
    for name, capability in (("A100", (8, 0)), ("H100", (9, 0))):
        check_driver(cuda12, Driver(version, None, (gpu(name, *capability),)))
        check_kernels(cuda12, gpu(name, *capability))


def test_a_driver_known_only_by_its_cuda() -> None:
    with pytest.raises(EnvironmentFault, match=r"up to CUDA 12\.8"):
        check_driver(AMPERE, Driver(None, (12, 8), ()))
    check_driver(V100, Driver(None, (12, 2), ()))


def test_a_new_enough_driver_passes() -> None:
    check_driver(AMPERE, Driver("580.65.06", None, ()))
    check_driver(V100, Driver("580.65.06", None, ()))


def in_image(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: object) -> None:
    values = {"set": "ampere", "cuda": "13.0", "minimum_driver": "580.65.06", "architectures": ["sm_80"]} | changes
    (folder / "image.json").write_text(json.dumps(values))
    monkeypatch.setenv("QWEN_JOB_IMAGE", str(folder / "image.json"))


def test_require_raises_the_first_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_image(monkeypatch, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="no NVIDIA driver"):
        require()


def test_the_cpu_set_needs_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_image(monkeypatch, tmp_path, set="cpu", cuda=None, minimum_driver=None, architectures=[])
    monkeypatch.setenv("QWEN_JOB_CACHE", str(tmp_path / "cache"))
    require()
    with pytest.raises(EnvironmentFault, match="carries no CUDA"):
        require("cuda")


def test_a_broken_image_description_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_image(monkeypatch, tmp_path)
    (tmp_path / "image.json").write_text("{")
    with pytest.raises(EnvironmentFault, match=r"image\.json: is not an image description"):
        installed_image()


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QWEN_JOB_CACHE", str(tmp_path / "file" / "cache"))
    (finding,) = [f for f in quick_check("cpu") if f.check == "cache"]
    assert finding.state == "fault"
    assert "set QWEN_JOB_CACHE" in finding.message


def test_small_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.node.quick_check.ENOUGH_SHARED_MEMORY", os.statvfs(tmp_path).f_blocks * 1 << 40)
    assert "--ipc=host" in shared_memory(tmp_path).message
    assert shared_memory(tmp_path / "none").state == "warning"


def test_a_gpu_job_on_a_python_without_cuda_is_told_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_job.node.quick_check.installed_image", lambda: Image(None, None, None, None))
    with pytest.raises(EnvironmentFault, match=r"install a CUDA build of torch, or write cluster\.gpu: CPU") as caught:
        require("cuda")
    assert "image" not in str(caught.value)
