"""Writing a bundle loses nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.launch.outputs import write_bundle
from qwen_job.render import Bundle

BUNDLE = Bundle("hostfile", {"a.sh": "#!/bin/sh\n", "b": "你\n"}, "a.sh", frozenset({"a.sh"}))


def test_files_and_modes(tmp_path: Path) -> None:
    paths = write_bundle(BUNDLE, tmp_path / "new" / "folder")
    assert [path.read_text("utf-8") for path in paths] == ["#!/bin/sh\n", "你\n"]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o755, 0o644]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["a.sh", "b"]


def test_the_same_content_may_be_there(tmp_path: Path) -> None:
    write_bundle(BUNDLE, tmp_path)
    assert len(write_bundle(BUNDLE, tmp_path)) == 2


def test_another_content_is_kept_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("mine")
    with pytest.raises(EnvironmentFault, match="b: already exists with other content"):
        write_bundle(BUNDLE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b"] and (tmp_path / "b").read_text() == "mine"
    write_bundle(BUNDLE, tmp_path, force=True)
    assert (tmp_path / "b").read_text("utf-8") == "你\n"


def test_a_folder_that_cannot_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_bundle(BUNDLE, tmp_path / "file")
    (tmp_path / "b").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot be written: it is no file"):
        write_bundle(BUNDLE, tmp_path)


@pytest.mark.parametrize(
    ("umask", "script", "text"), [(0o077, "0o700", "0o600"), (0o002, "0o775", "0o664"), (0o022, "0o755", "0o644")]
)
def test_a_bundle_s_files_have_what_the_user_s_umask_leaves(tmp_path: Path, umask: int, script: str, text: str) -> None:
    before = os.umask(umask)
    try:
        write_bundle(Bundle("local", {"run.sh": "x", "b": "y"}, "run.sh", frozenset({"run.sh"})), tmp_path / "out")
    finally:
        os.umask(before)
    assert [oct((tmp_path / "out" / name).stat().st_mode & 0o777) for name in ("run.sh", "b")] == [script, text]
