"""A checkpoint without a matching manifest does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_job.run.manifest import Checkpoint, check, describe, newest, prune, write_manifest


def checkpoint(home: Path, step: int) -> Path:
    """Write a complete checkpoint of two files."""
    folder = home / f"step-{step}"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "rank0.pt").write_bytes(b"weights of step %d" % step)
    (folder / "latest").write_text("x")
    files = {name: describe(folder / name) for name in ("shards/rank0.pt", "latest")}
    write_manifest(folder, step=step, world_size=2, zero_stage=2, files=files)
    return folder


def test_the_newest_complete_one_is_chosen_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "step-200").mkdir()
    found, passed_over = newest(tmp_path)
    assert found == Checkpoint(100, tmp_path / "step-100", 2, 2)
    assert passed_over == ["step-200 is skipped: it has no manifest: its save was interrupted"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes instead of"),
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "does not match the hash"),
        (lambda path: (path.parents[1] / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path.parents[1] / "manifest.json").write_text("[]"), "cannot be read"),
    ],
)
def test_a_torn_one_is_passed_over_with_the_reason(tmp_path: Path, harm: object, reason: str) -> None:
    checkpoint(tmp_path, 1)
    folder = checkpoint(tmp_path, 2)
    harm(folder / "shards" / "rank0.pt")  # type: ignore[operator]
    found, passed_over = newest(tmp_path)
    assert found is not None and found.step == 1
    assert reason in passed_over[0]


def test_none_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") == (None, [])
    assert isinstance(check(tmp_path), str)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    (tmp_path / "step-3" / "manifest.json").unlink()
    assert prune(tmp_path, keep=1, keep_steps=[1]) == [2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-4"]


def test_pruning_without_a_limit_keeps_all_complete_ones(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint(tmp_path, step)
    assert prune(tmp_path, keep=None) == []
