"""What a run's folder says of its job, and what is said of a folder that may not be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.launch.find import find_one
from qwen_job.run.owner import Owner, check_readable, forbids, owner_of


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def written(run: Path, text: str) -> Path:
    (run / "launch").mkdir(parents=True)
    (run / "launch" / "job").write_text(text)
    return run


def test_the_folder_names_queue_id_owner_and_log(tmp_path: Path) -> None:
    run = written(tmp_path / "run", "target slurm\nid 12_3\nuser me\nlog /logs/a b-12_3.out\nlater word\n")
    assert owner_of(run) == Owner("slurm", "12_3", "me", "/logs/a b-12_3.out")
    entry = find_one(str(run), None, asked=False).entry
    assert (entry.target, entry.id, entry.user, entry.log) == ("slurm", "12_3", "me", "/logs/a b-12_3.out")


def test_a_sweep_s_folder_is_the_array_s(tmp_path: Path) -> None:
    written(tmp_path / "seed=1", "target slurm\nid 12_0\nuser me\nlog /l\n")
    (tmp_path / "sweep.json").write_text('{"runs": [{"folder": "seed=1", "values": {}}]}')
    assert owner_of(tmp_path).id == "12"
    assert find_one(str(tmp_path), None, asked=False).entry.target == "slurm"


@pytest.mark.parametrize("text", ["", "\x00\xff", "target\n", "x" * 100_000])
def test_a_torn_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert owner_of(written(tmp_path / "run", text)) == Owner()


def test_a_folder_that_is_not_there_or_open_is_no_missing_permission(tmp_path: Path) -> None:
    assert forbids("") == forbids(tmp_path) == forbids(tmp_path / "nowhere") == forbids("a\0b") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to become somebody else")
def test_a_closed_folder_is_said_to_be_closed_and_by_whom(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "run").mkdir(parents=True)
    closed.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    os.seteuid(65534)
    try:
        for folder in (closed, closed / "run"):
            with pytest.raises(EnvironmentFault, match=r"no permission to read it.* belongs to root"):
                check_readable(folder)
    finally:
        os.seteuid(0)
