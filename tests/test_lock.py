"""The lock: one holder, freed by death, watched by heartbeat where flock does not reach."""

from __future__ import annotations

import fcntl
import json
import threading
import time
from pathlib import Path

import pytest

from qwen_job.lock import FileLock


def _never() -> bool:
    return False


def _unsupported(_file: int, _operation: int) -> None:
    raise OSError(38, "Function not implemented")


def test_waits_for_the_holder_or_for_the_work(tmp_path: Path) -> None:
    path, done, order = tmp_path / "lock", threading.Event(), []

    def second() -> None:
        with FileLock(path, done.is_set, poll=0.01) as held:
            order.append(("second", held))

    with FileLock(path, _never) as held:
        assert held
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.1)
        order.append(("first", True))
        done.set()
    waiting.join()
    assert order == [("first", True), ("second", False)]
    with FileLock(path, _never) as held:
        assert held


@pytest.mark.parametrize("flock", [True, False])
def test_one_holder_at_a_time_also_when_each_removes_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool
) -> None:
    if not flock:
        monkeypatch.setattr(fcntl, "flock", _unsupported)
    path, held, turns = tmp_path / "lock", list[int](), list[int]()

    def take(times: int) -> None:
        for _ in range(times):
            with FileLock(path, _never, remove=True, poll=0.002):
                held.append(1)
                time.sleep(0.001)
                assert len(held) == 1
                held.pop()
                turns.append(1)

    threads = [threading.Thread(target=take, args=[20 if flock else 3]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(turns) == (80 if flock else 12) and not path.exists()


def test_work_that_is_done_when_the_lock_comes_is_not_done_again(tmp_path: Path) -> None:
    answers = iter([False, True])
    with FileLock(tmp_path / "lock", lambda: next(answers)) as held:
        assert not held
    with FileLock(tmp_path / "lock", _never) as held:
        assert held


def _foreign(path: Path, beats: int) -> None:
    owner = {"host": "another boot", "pid": 1, "token": "x", "beats": beats}
    path.touch()
    with path.open("r+", encoding="utf-8") as stream:  # never empty in between, as a real holder writes it
        stream.write(json.dumps(owner))


def test_a_holder_on_another_machine_is_believed_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _foreign(path, 0)
    taken = threading.Event()

    def take() -> None:
        with FileLock(path, _never, stale_after=2.5, poll=0.02):
            taken.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    for beat in range(1, 6):
        time.sleep(0.2)
        _foreign(path, beat)
    assert not taken.is_set()
    assert taken.wait(20)
    waiting.join()


def test_without_flock_the_heartbeat_decides_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _unsupported)
    path, held = tmp_path / "lock", []

    def take() -> None:
        with FileLock(path, _never, stale_after=2.5, poll=0.02):
            held.append(1)
            assert len(held) == 1
            time.sleep(0.9)
            held.pop()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not held and path.read_text() == ""


def test_who_is_waited_for_is_told_once(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", list[str]()
    _foreign(path, 0)
    with FileLock(path, lambda: len(told) > 0, waiting=told.append, poll=0.01) as held:
        assert not held
    assert told == ["another (process 1)"]


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for_too(tmp_path: Path) -> None:
    path, told = tmp_path / "lock", list[str]()
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with FileLock(path, lambda: len(told) > 0, waiting=told.append, poll=0.01) as held:
            assert not held
    assert told == ["another process"]
