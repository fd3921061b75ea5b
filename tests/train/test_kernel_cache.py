"""Compiled kernels are kept for the next attempt, and never used where they were not made for."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.run.folder import RunFolder  # noqa: E402
from qwen_job.train import kernel_cache  # noqa: E402
from qwen_job.train.kernel_cache import KernelCache, Key, keep_cache, open_cache  # noqa: E402
from tests.support import optional  # noqa: E402

KEY: Key = {"torch": "2.13.0", "CUDA": "13.0", "device": "NVIDIA H200", "settings": "abc"}


class Run:
    """A run folder, its log, and a node's temporary folder."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.said = tmp_path, list[str]()
        self.folder = RunFolder(tmp_path / "run")
        self.folder.path.mkdir()
        self._patch = monkeypatch
        self.node("first")

    def node(self, name: str) -> Path:
        """Move to a node whose kernels are in a folder of this name."""
        self._patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(self.path / name))
        self._patch.setenv("TRITON_CACHE_DIR", "")
        return self.path / name

    def open(self, **changes: str) -> KernelCache:
        return open_cache(self.folder, {**KEY, **changes}, self.said.append)

    def compile(self) -> None:
        """Compile: write a kernel, and keep it."""
        cache = self.open()
        (cache.folder / "ab").mkdir()
        (cache.folder / "ab" / "kernel.py").write_text("print(1)")
        (cache.folder / "ab" / "kernel.lock").write_text("")
        keep_cache(cache, self.folder, self.said.append)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(tmp_path, monkeypatch)


def files(cache: KernelCache) -> list[str]:
    return sorted(path.relative_to(cache.folder).as_posix() for path in cache.folder.rglob("*") if path.is_file())


def test_a_restart_on_another_node_finds_the_kernels_of_the_run(run: Run) -> None:
    run.compile()
    run.node("second")
    cache = run.open()
    assert files(cache) == ["ab/kernel.py"]
    assert cache.source == str(run.folder.kernels)
    assert run.said == []


def test_a_restart_on_the_same_node_uses_the_folder_there(run: Run) -> None:
    run.compile()
    run.folder.kernels.unlink()
    run.node("first")
    assert files(run.open()) == ["ab/kernel.lock", "ab/kernel.py"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"torch": "2.14.0"}, "another torch (now 2.14.0)"),
        ({"device": "NVIDIA A100"}, "another device (now NVIDIA A100)"),
        ({"settings": "other"}, "another settings"),
    ],
)
def test_kernels_of_another_torch_or_gpu_are_ignored_with_one_line(
    run: Run, changes: dict[str, str], named: str
) -> None:
    run.compile()
    run.node("second")
    assert files(run.open(**changes)) == []
    (said,) = run.said
    assert "kernels.zip: ignored" in said and named in said


def test_the_folder_that_torch_names_itself_is_not_taken_for_the_users(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "_temporary", lambda: str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache_dir()  # sets the variable
    assert run.open().folder.parent == tmp_path / f"qwen-job-kernels-{os.geteuid()}"


def test_two_trainings_in_one_process_have_folders_beside_each_other(run: Run) -> None:
    assert run.open().folder.parent == run.open(device="NVIDIA A100").folder.parent


def test_kernels_of_another_gpu_on_the_same_node_are_separate(run: Run) -> None:
    run.compile()
    run.node("first")
    assert files(run.open(device="NVIDIA A100")) == []


def test_a_damaged_archive_is_ignored_with_one_line(run: Run) -> None:
    run.compile()
    whole = run.folder.kernels.read_bytes()
    for number, broken in enumerate((whole[: len(whole) // 2], b"", whole[:60] + b"\xff" * 20 + whole[80:])):
        run.said.clear()
        run.folder.kernels.write_bytes(broken)
        run.node(f"node-{number}")
        assert files(run.open()) == []
        assert len(run.said) == 1 and "kernels.zip: ignored" in run.said[0]


def test_an_archive_writes_nothing_outside_its_folder(run: Run) -> None:
    run.compile()
    with zipfile.ZipFile(run.folder.kernels, "a") as archive:
        archive.writestr("../../outside.py", "print(2)")
    second = run.node("second")
    run.open()
    assert not list(second.parent.glob("outside.py")) and not list(second.glob("outside.py"))


def test_an_image_brings_kernels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.compile()
    (run.path / "image" / "kernels").mkdir(parents=True)
    run.folder.kernels.rename(run.path / "image" / "kernels" / "h200.zip")
    monkeypatch.setenv("QWEN_JOB_IMAGE", str(run.path / "image" / "image.json"))
    run.node("second")
    assert run.open().source.endswith("kernels/h200.zip")


def test_a_folder_that_others_can_write_is_never_used(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = run.node("open")
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    monkeypatch.setattr(kernel_cache, "_temporary", lambda: str(tmp_path))
    assert open_to_all not in run.open().folder.parents
    assert "other users can write there" in run.said[0]


def test_a_full_disk_is_left_for_the_next_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        optional.skip("root", "a small disk is mounted")
    small = run.node("small")
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(small)], check=True)
    try:
        monkeypatch.setattr(kernel_cache, "_temporary", lambda: str(tmp_path))
        monkeypatch.setattr(kernel_cache, "_ROOM_BYTES", 2**21)
        cache = run.open()
        assert small not in cache.folder.parents and tmp_path in cache.folder.parents
        assert "1 MiB are free, 2 are needed" in run.said[0]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_run_folder_without_space_keeps_no_archive(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    run.compile()
    assert [path.name for path in run.folder.path.iterdir()] == []
    assert "kernels.zip: not written (No space left on device)" in run.said[0]
