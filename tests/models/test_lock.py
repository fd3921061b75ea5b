"""One worker at a time, and a dead one holds nobody up."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.models import lock
from qwen_job.models.lock import exclusive

HOLD = (
    "import sys, time; from pathlib import Path; from qwen_job.models.lock import exclusive\n"
    "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_a_killed_holder_leaves_the_lock_free(tmp_path: Path) -> None:
    path = tmp_path / "model.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with exclusive(path):
            assert time.monotonic() - started < 1


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_lease_is_held_and_given_back(tmp_path: Path) -> None:
    with exclusive(tmp_path / "model.lock"):
        assert (tmp_path / "model.lease").read_text().endswith(f"(process {os.getpid()})")
    assert not (tmp_path / "model.lease").exists()


@pytest.mark.usefixtures("no_flock")
def test_a_stale_lease_is_taken_over_and_a_fresh_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)
    (tmp_path / "model.lease").write_text("node1 (process 7)")
    lines: list[str] = []
    started = time.monotonic()
    with exclusive(tmp_path / "model.lock", lines.append):
        assert 0.8 < time.monotonic() - started < 5
    assert lines == ["waiting for node1 (process 7), who prepares model"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"set model\.cache_dir"), exclusive(tmp_path / "file" / "model.lock"):
        pass
