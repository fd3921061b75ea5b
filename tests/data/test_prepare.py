"""Preparing: conserved, deterministic, done once, and never half-valid."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_job.chatml import SYSTEM_PROMPT
from qwen_job.data import ChatTokenizer, open_prepared, prepare_data
from qwen_job.data import prepare as build
from qwen_job.data.encode import encode_conversation
from qwen_job.data.formats import parse_record
from qwen_job.data.prepared import describe
from qwen_job.errors import DataError, EnvironmentFault, ModelError
from qwen_job.resources import resource
from qwen_job.run.sections import DataFile, DataSpec

from .conftest import conversation

DEMO = resource("configs", "data", "demo.json")


def _rows(count: int) -> list[dict[str, Any]]:
    return [conversation(f"问题 {n}", f"answer {n} " * (n % 9 + 1)) for n in range(count)]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut inputs into many chunks and use worker processes for them."""
    monkeypatch.setattr(build, "CHUNK_BYTES", 4000)
    monkeypatch.setattr(build, "_SMALL", 0)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("mask", ["assistant", "reference"])
def test_every_token_and_label_arrives(tiny: Path, tmp_path: Path, packing: bool, mask: str) -> None:
    spec = DataSpec(train=(DataFile(path=DEMO),), max_length=512, packing=packing, mask=mask)
    data = open_prepared(prepare_data(spec, tiny, tmp_path))
    tokenizer = ChatTokenizer.load(tiny)
    expected = {
        (0, number): encode_conversation(parse_record(record), tokenizer, system_prompt=SYSTEM_PROMPT, mask=mask)
        for number, record in enumerate(json.loads(DEMO.read_text(encoding="utf-8")), 1)
    }
    for row in (data.train[number] for number in range(len(data.train))):
        assert row.input_ids.size <= 512 and row.input_ids.dtype == row.labels.dtype == np.int32
        ends = np.cumsum(row.document_lengths)
        for source, end, length in zip(row.source_rows, ends, row.document_lengths, strict=True):
            encoded = expected.pop(source)
            assert row.input_ids[end - length : end].tolist() == encoded.input_ids
            assert row.labels[end - length : end].tolist() == encoded.labels
            assert row.position_ids[end - length : end].tolist() == list(range(length))
    assert not expected
    assert data.stats["train"]["samples"] == 72 and len(data.eval) == 0
    assert data.train.row_lengths().sum() == data.stats["train"]["tokens"]


@pytest.mark.usefixtures("small_chunks")
def test_the_same_bytes_from_any_number_of_workers(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    rows = _rows(600)
    spec = DataSpec(
        train=(DataFile(path=write(rows), weight=1.5), DataFile(path=write(rows[:90], "more.jsonl"), weight=0.5)),
        eval_split=0.1,
    )
    samples: list[int] = []
    folders = [
        prepare_data(spec, tiny, tmp_path / f"cache{workers}", workers=workers, progress=samples.append)
        for workers in (1, 3)
    ]
    assert _files(folders[0]) == _files(folders[1])
    assert folders[0].name == folders[1].name
    stats = open_prepared(folders[0]).stats
    assert samples[-1] == stats["train"]["samples"] + stats["eval"]["samples"]
    assert stats["eval"]["samples"] + stats["train"]["samples"] + stats["left_out_by_weight"] == 690
    held, trained = ({s for row in split for s in row.source_rows} for split in _splits(folders[0]))
    assert held and trained and not held & trained


def _splits(folder: Path) -> list[list[Any]]:
    data = open_prepared(folder)
    return [[split[number] for number in range(len(split))] for split in (data.eval, data.train)]


def test_found_again_until_something_changes(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(_rows(5))
    spec = DataSpec(train=(DataFile(path=path),))
    calls: list[int] = []
    first = prepare_data(spec, tiny, tmp_path / "cache", progress=calls.append)
    assert calls
    calls.clear()
    moved = path.rename(tmp_path / "moved.json")
    assert (
        prepare_data(DataSpec(train=(DataFile(path=moved),)), tiny, tmp_path / "cache", progress=calls.append) == first
    )
    assert not calls
    names = {first.name}
    for change in ({"max_length": 64}, {"mask": "reference"}, {"system_prompt": ""}, {"packing": False}):
        names.add(build.fingerprint(DataSpec(train=(DataFile(path=moved),), **change), tiny))
    moved.write_text(json.dumps(_rows(6)), encoding="utf-8")
    names.add(build.fingerprint(DataSpec(train=(DataFile(path=moved),)), tiny))
    assert len(names) == 6


@pytest.mark.usefixtures("small_chunks")
def test_bad_rows_are_named_and_nothing_is_left(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    rows = _rows(300)
    rows[250] = conversation("q", "")
    path = write(rows)
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"rows\.json:251: turn 2 \(assistant\): is empty"):
            prepare_data(DataSpec(train=(DataFile(path=path),)), tiny, tmp_path / "cache", workers=workers)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"long_samples": "drop", "max_length": 32}, "no sample is left"), ({"eval_split": 0.001}, "holds out no sample")],
)
def test_nothing_left(
    tiny: Path, tmp_path: Path, write: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        prepare_data(DataSpec(train=(DataFile(path=write(_rows(9))),), **change), tiny, tmp_path)


@pytest.mark.parametrize(("words", "pieces"), [(2000, True), (1, False)])
def test_the_log_tells_of_pieces_without_system_prompt_and_question(
    tiny: Path, tmp_path: Path, write: Callable[..., Path], words: int, pieces: bool
) -> None:
    spec = DataSpec(
        train=(DataFile(path=write([conversation("q", "long " * words)])),), max_length=128, long_samples="split"
    )
    data = open_prepared(prepare_data(spec, tiny, tmp_path / "cache"))
    expected = data.stats["split_pieces"] - 1 if pieces else 0
    assert data.stats["continued_pieces"] == expected and (expected > 2) == pieces
    said = [line for line in describe(data.stats) if "without the system prompt and the question" in line]
    assert [line.split()[0] for line in said] == ([str(expected)] if pieces else [])


def test_an_eval_file_of_which_nothing_is_left_is_named(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write([conversation("q", "long " * 200)], "held.json")
    spec = DataSpec(train=(DataFile(path=DEMO),), eval=(DataFile(path=path),), max_length=128, long_samples="drop")
    with pytest.raises(DataError, match=r"data\.eval: .*held\.json: no sample is left .* max_length 128"):
        prepare_data(spec, tiny, tmp_path)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 2.5])
def test_trained_tokens_are_counted_as_often_as_they_are_shown(
    tiny: Path, tmp_path: Path, write: Callable[..., Path], weight: float
) -> None:
    path = write(_rows(200))
    data = open_prepared(
        prepare_data(DataSpec(train=(DataFile(path=path, weight=weight),), eval_split=0.1), tiny, tmp_path)
    )
    for rows, figures in ((data.train, data.stats["train"]), (data.eval, data.stats["eval"])):
        shown = [rows[number] for number in range(len(rows))]
        assert figures["tokens"] == sum(row.input_ids.size for row in shown)
        assert figures["trained_tokens"] == sum(int(np.count_nonzero(row.labels != -100)) for row in shown)


def test_missing_inputs(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json: does not exist"):
        prepare_data(DataSpec(train=(DataFile(path=tmp_path / "no.json"),)), tiny, tmp_path)
    with pytest.raises(ModelError, match=r"tokenizer\.json: does not exist"):
        prepare_data(DataSpec(train=(DataFile(path=DEMO),)), tmp_path, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="cannot be created"):
        prepare_data(DataSpec(train=(DataFile(path=DEMO),)), tiny, tmp_path / "file")


def test_damage_is_found_when_opening(tiny: Path, tmp_path: Path) -> None:
    folder = prepare_data(DataSpec(train=(DataFile(path=DEMO),)), tiny, tmp_path)
    with (folder / "train.tokens").open("ab") as stream:
        stream.truncate(100)
    with pytest.raises(DataError, match="has 100 bytes instead of"):
        open_prepared(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="not complete"):
        open_prepared(folder)
    assert open_prepared(prepare_data(DataSpec(train=(DataFile(path=DEMO),)), tiny, tmp_path)).stats


def test_rows_travel_to_other_processes_and_know_their_ends(tiny: Path, tmp_path: Path) -> None:
    rows = open_prepared(prepare_data(DataSpec(train=(DataFile(path=DEMO),)), tiny, tmp_path)).train
    again = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(again[-1].input_ids, rows[len(rows) - 1].input_ids)
    with pytest.raises(IndexError):
        rows[len(rows)]


_SCRIPT = """
import sys, time
from pathlib import Path
from qwen_job.data import prepare_data
from qwen_job.data import prepare as build
from qwen_job.run.sections import DataFile, DataSpec
build.CHUNK_BYTES, build._SMALL = 20000, 0
path, tokenizer, cache = map(Path, sys.argv[1:4])
pause = float(sys.argv[4])
report = lambda samples: (print("working", flush=True), time.sleep(pause))
print(prepare_data(DataSpec(train=(DataFile(path=path),)), tokenizer, cache, workers=2, progress=report))
"""


def _start(path: Path, tokenizer: Path, cache: Path, pause: float = 0.0) -> subprocess.Popen[str]:
    """Prepare in another process, which says "working" at every step and then waits ``pause`` seconds."""
    command = [sys.executable, "-c", _SCRIPT, str(path), str(tokenizer), str(cache), str(pause)]
    root = str(Path(build.__file__).resolve().parents[2])
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})


def test_killed_in_the_middle_then_run_again(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(_rows(6000))
    victim = _start(path, tiny, tmp_path / "cache", pause=60.0)
    assert victim.stdout and victim.stdout.readline() == "working\n"
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    left = [item.name for item in (tmp_path / "cache").iterdir()]
    assert any(".partial-" in name for name in left) and not any("." not in name for name in left)
    spec = DataSpec(train=(DataFile(path=path),))
    started = time.monotonic()
    folder = prepare_data(spec, tiny, tmp_path / "cache")
    assert time.monotonic() - started < 20, "the lock of the killed process is not waited for"
    assert _files(folder) == _files(prepare_data(spec, tiny, tmp_path / "undisturbed"))
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [folder.name]


def test_many_at_once_do_the_work_once(tiny: Path, tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(_rows(3000))
    processes = [_start(path, tiny, tmp_path / "cache") for _ in range(3)]
    lines = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({line[-1] for line in lines}) == 1
    assert sorted("working" in line for line in lines) == [False, False, True]
