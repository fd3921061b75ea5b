"""A file is there in full or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_job.atomic import sync_folder, write_atomically


@pytest.mark.parametrize(("content", "sync"), [("你", True), ("你".encode(), False)])
def test_the_content_replaces_what_was_there(tmp_path: Path, content: str | bytes, sync: bool) -> None:
    path = tmp_path / "new" / "folder" / "x"
    for _ in range(2):
        write_atomically(path, content, sync=sync)
    assert path.read_text("utf-8") == "你"
    assert list(path.parent.iterdir()) == [path]


def test_the_mode_is_the_one_given_or_what_the_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_atomically(tmp_path / "given", "", mode=0o755)
        write_atomically(tmp_path / "default", "")
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("given", "default")] == [0o755, 0o640]


def test_a_write_that_fails_leaves_no_crumbs(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        write_atomically(tmp_path / "x", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_that_cannot_be_synced_is_left_alone(tmp_path: Path) -> None:
    sync_folder(tmp_path / "missing")
