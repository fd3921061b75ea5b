"""How the checkpointer makes room for a copy of the state, and does without where there is none."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.train

torch = pytest.importorskip("torch")
from qwen_job.train import checkpoints  # noqa: E402
from qwen_job.train.checkpoints import Checkpointer, available_memory, map_tensors  # noqa: E402
from qwen_job.train.media import Disk  # noqa: E402


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_containers_limit_counts_as_the_nodes_memory(tmp_path: Path) -> None:
    whole = available_memory(tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert available_memory(tmp_path) == 3_000_000 < whole
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 3_000_000


@pytest.mark.usefixtures("alone")
def test_training_waits_for_saves_where_a_copy_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "available_memory", lambda: 100 * 2**30)
    for wanted, background in ((10 * 2**30, True), (90 * 2**30, False)):
        checkpointer = Checkpointer(tmp_path, zero_stage=2, background=True)
        monkeypatch.setattr(checkpointer, "_note_size", lambda _, c=checkpointer, w=wanted: c._sizes.append(w))
        monkeypatch.setattr(checkpointer._snapshots, "reserve", lambda _: None)

        def collect(folder: Path, checkpointer: Checkpointer = checkpointer) -> None:
            checkpointer.makedirs(str(folder / "global_step1"))
            checkpointer.save({"weights": [torch.zeros(3)]}, str(folder / "global_step1" / "model.pt"))
            checkpointer.keep_text("latest", "global_step1")

        reason = checkpointer.reserve(collect)
        assert checkpointer.background == background == (reason is None)
        assert reason is None or ("takes 90.0 GiB on rank 0" in reason and "100.0 GiB" in reason)
        assert [path.name for path in tmp_path.iterdir()] == ["store"]  # nothing was written


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("background", [True, False])
def test_only_files_on_disk_have_a_checksum_inside_and_all_can_be_read(tmp_path: Path, background: bool) -> None:
    checkpointer = Checkpointer(tmp_path / "disk", zero_stage=2, background=background)
    state = {"weights": torch.arange(1000.0), "step": 7}
    for medium, problem in ((Disk(tmp_path / "memory", 2), True), (checkpointer.disk, False)):
        checkpointer.begin(7, lambda _: checkpointer.keep("state.pt", state), medium)
        checkpointer.finish()
        (path,) = medium.folder.glob("step-*/state.pt")
        assert (zipfile.ZipFile(path).testzip() is not None) == problem
        read = torch.load(path)
        assert torch.equal(read["weights"], state["weights"]) and read["step"] == 7
    assert torch.serialization.get_crc32_options()


def test_tensors_are_replaced_wherever_they_are() -> None:
    state: dict[str, Any] = {"a": torch.ones(2), "b": [(torch.ones(3), "text")], "c": 7}
    assert map_tensors(state, lambda tensor: tensor.numel()) == {"a": 2, "b": [(3, "text")], "c": 7}


def test_saves_of_different_tensors_share_their_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a node that saves its weights to memory, and not to disk."""
    made: list[int] = []
    monkeypatch.setattr(checkpoints, "page_locked", lambda size: made.append(size) or torch.empty(size))
    snapshots = checkpoints.Snapshots()
    snapshots.reserve([8, 4, 8])
    first = [snapshots._buffer(size) for size in (8, 4, 8)]
    snapshots.restart()
    second = [snapshots._buffer(size) for size in (4, 8)]
    assert [id(buffer) for buffer in second] == [id(first[1]), id(first[0])]
    snapshots.restart()
    assert len({id(snapshots._buffer(8)) for _ in range(3)}) == 3
    assert sorted(made) == [4, 8, 8, 8]


def test_page_locked_buffers_share_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[tuple[int, int]] = []

    class Driver:
        def cudaHostRegister(self, pointer: int, size: int, _flags: int) -> int:  # noqa: N802 (CUDA's own name)
            locked.append((pointer, size))
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Driver)
    sizes = [1, 64, 4096, 5000, 3_000_000, 0]
    buffers = [checkpoints.page_locked(size) for size in sizes]
    assert [buffer.numel() for buffer in buffers] == sizes and len(locked) == 5
    pages = [page for start, size in locked for page in range(start // 4096, (start + size) // 4096)]
    assert all(start % 4096 == size % 4096 == 0 for start, size in locked) and len(set(pages)) == len(pages)
    for buffer, (start, size) in zip(buffers, locked, strict=False):
        assert start == buffer.data_ptr() and buffer.numel() <= size
