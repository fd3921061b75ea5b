"""One writer a run's folder: whoever comes second is told the first one's name; who is gone holds nobody up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_job.errors import UsageError
from qwen_job.run.folder import RunFolder
from qwen_job.run.lease import Entry, Lease, machine, owner_name, process

QUICK = 0.1
HOLDER = """
import sys, time
from pathlib import Path
from qwen_job.run.lease import Lease
Lease(Path(sys.argv[1]), print, renew=0.1).take(print)
print("taken", flush=True)
time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout
        assert started.stdout.readline() == "taken\n"
        yield started
        started.kill()


def take(run: Path, dead: float = 5.0) -> Lease:
    lease = Lease(run, lambda _: None, renew=QUICK)
    lease.take(lambda _: None, dead=dead)
    return lease


def test_the_second_is_refused_with_the_first_one_s_name(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(UsageError, match=rf"output: process {holder.pid} on ") as caught:
        take(tmp_path, dead=60)
    assert caught.value.exit_code == 2


def test_a_killed_process_of_this_machine_holds_nobody_up(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    began = time.monotonic()
    take(tmp_path, dead=60).release()
    assert time.monotonic() - began < 30
    assert not (RunFolder(tmp_path).lease).exists()


def written(run: Path, **values: object) -> Path:
    entry = Entry("a" * 32, 7, "elsewhere", "1:1", "Slurm job 7")._replace(**values)  # type: ignore[arg-type]
    (run / "launch").mkdir()
    (RunFolder(run).lease).write_bytes(entry.text())
    return RunFolder(run).lease


def test_a_lease_of_another_machine_that_does_not_change_is_taken(tmp_path: Path) -> None:
    written(tmp_path)
    took = take(tmp_path, dead=0.3)
    assert (RunFolder(tmp_path).lease).read_text().split()[2] == machine()
    took.release()


def test_a_clock_that_is_off_by_a_day_changes_nothing(tmp_path: Path) -> None:
    import os

    for offset in (-86400, 86400):
        path = tmp_path / str(offset)
        path.mkdir()
        file = written(path)
        os.utime(file, (time.time() + offset, time.time() + offset))
        take(path, dead=0.3).release()


def test_the_next_attempt_of_the_same_job_starts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    written(tmp_path, owner="Slurm job 7")
    began = time.monotonic()
    take(tmp_path, dead=600).release()
    assert time.monotonic() - began < 60


def test_two_runs_inside_one_allocation_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "taken\n"
        with pytest.raises(UsageError, match="Slurm job 7 trains in"):
            take(tmp_path, dead=60)
        first.kill()


def test_a_process_that_is_no_number_is_gone(tmp_path: Path) -> None:
    written(tmp_path, machine=machine(), process="x:1")
    take(tmp_path, dead=600).release()


def test_of_many_that_come_in_the_same_moment_one_gets_it(tmp_path: Path) -> None:
    def one(_: int) -> Lease | None:
        # Renewed slowly, so that the look afterwards comes late enough on a busy machine, too.
        lease = Lease(tmp_path, lambda _: None, renew=4)
        try:
            lease.take(lambda _: None, dead=10)
        except UsageError:
            return None
        return lease

    # Threads of one process have one owner's name: as processes of another machine they would be judged by their lines.
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr("qwen_job.run.lease._may_live", lambda _: True)
        took = [lease for lease in pool.map(one, range(8)) if lease]
    assert len(took) == 1
    took[0].release()


def test_a_holder_that_lost_its_lease_is_told_by_whom(tmp_path: Path) -> None:
    told: list[str] = []
    lease = Lease(tmp_path, told.append, renew=QUICK)
    lease.take(lambda _: None)
    (RunFolder(tmp_path).lease).write_bytes(Entry("b" * 32, 1, "elsewhere", "1:1", "pod other-worker-0").text())
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert told == ["pod other-worker-0"]
    lease.release()
    assert (RunFolder(tmp_path).lease).exists(), "it is the other one's"


@pytest.mark.parametrize("text", ["", "garbage", "a b c d e", "\x00" * 300])
def test_what_no_holder_writes_is_written_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "launch").mkdir()
    (RunFolder(tmp_path).lease).write_text(text)
    take(tmp_path, dead=600).release()


def test_who_owns_a_lease() -> None:
    assert owner_name({"SLURM_JOB_ID": "9"}) == "Slurm job 9"
    assert owner_name({"SLURM_JOB_ID": "9", "SLURM_CLUSTER_NAME": "a"}) == "Slurm job 9 of a"
    assert owner_name({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}) == "Slurm job 8_3"
    pods = [owner_name({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "QWEN_JOB_RENDEZVOUS_ID": name}) for name in ("a", "b")]
    assert pods[0] != pods[1], "on the host's network both have the node's name"
    assert process(2**22 + 7) == f"{2**22 + 7}"
