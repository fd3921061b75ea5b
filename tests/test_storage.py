"""One worker at a time, and a dead one holds nobody up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_job.errors import EnvironmentFault
from qwen_job.storage import exclusive

HOLD = (
    "import sys, time; from pathlib import Path; from qwen_job.storage import exclusive\n"
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


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match=r"model\.cache_dir"), exclusive(tmp_path / "file" / "model.lock"):
        pass
