"""Worker processes: what a lost one says."""

from __future__ import annotations

import datetime
import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_job.data.chunk_encoder import Task
from qwen_job.data.rows import Chunk
from qwen_job.data.worker import Workers, make_setup, no_collection
from qwen_job.errors import EnvironmentFault, ModelError
from qwen_job.run.sections import DataFile, DataSpec
from tests.data.conftest import conversation

TODAY = datetime.date(2026, 1, 1)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_killed_worker_is_named_and_the_other_goes_on(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "a")], "rows.jsonl")
    chunk = Chunk(1, "lines", path.read_bytes())
    before = _children(os.getpid())
    with Workers(make_setup(DataSpec(train=(DataFile(path=path),)), tiny, tmp_path, TODAY), 2) as (one, other):
        assert one.encode(Task(0, "train", 0, chunk))["train_samples"] == 1
        (first,) = set(_children(os.getpid())) - set(before)
        os.kill(min(_children(first)), signal.SIGKILL)
        assert other.encode(Task(1, "train", 0, chunk))["train_samples"] == 1
        other.close()
        with pytest.raises(EnvironmentFault, match=r"ended with -9 \(killed, perhaps by the memory limit"):
            one.encode(Task(2, "train", 0, chunk))
    assert _children(os.getpid()) == before


def test_no_tokenizer(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "a")])
    with (
        Workers(make_setup(DataSpec(train=(DataFile(path=path),)), tmp_path, tmp_path, TODAY), 1) as (worker,),
        pytest.raises(ModelError, match=r"tokenizer\.json: does not exist"),
    ):
        worker.encode(Task(0, "train", 0, Chunk(1, "lines", b"{}")))


def test_the_collector_is_off_while_this_process_encodes_and_then_as_before() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), no_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
