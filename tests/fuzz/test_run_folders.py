"""The door of run folders: shared ones may hold anything; what can be read is shown, what cannot is named."""

# ruff: noqa: E501 - one case a line
from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from qwen_job.report.page import main_figures, write_report
from qwen_job.run.progress import progress_of
from qwen_job.run.reading import number as measured
from qwen_job.run.reading import read_lines, read_object, whole
from qwen_job.text import HIDDEN
from tests.fuzz.harness import Box, amount, fuzz, judge
from tests.jobs import PINNED
from tests.support.run_folders import EVENTS, FILES, run_folder

BIG = "9" * 5_000
ESCAPES = "\x1b]0;pwned\x07\x9b2J\u202e\ud800\u2028"
# Values that some field of some file may hold.
ODD: list[Any] = [
    None, True, False, -1, 0, 10**18, 10**30, 10**299, -(10**299), 1e308, -1e308, 5e-324, float("nan"), float("inf"),
    "", "x", ESCAPES, "x" * 10_000, [], {}, [[]], {"a": {"b": 1}}, [None], ["x"] * 1_000, {ESCAPES: ESCAPES},
]  # fmt: skip
# What a whole file may be.
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "text": b"not json",
    "nul": b"\0" * 1_000,
    "binary": bytes(range(256)),
    "deep": b"[" * 25_000,
    "deep objects": b'{"a":' * 25_000,
    "closed": b"[" * 25_000 + b"]" * 25_000,
    "digits": f'{{"step": {BIG}, "time": {BIG}}}'.encode(),
    "list": b"[1, 2]",
    "number": b"1",
    "null": b"null",
    "huge float": b'{"time": 1e999, "loss": -1e999}',
    "surrogate": b'{"state": "\\ud800", "name": "\\udfff"}',
    "aliases": b"a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n".encode() for i in range(1, 30)),
    "long line": b'{"a": "' + b"x" * 5_000_000,
}
# Lines that somebody else wrote into metrics.jsonl.
LINES = [
    "not json", "[1]", "1", "null", '{"type": "step"}', f'{{"type": "step", "step": {BIG}}}', "[" * 25_000,
    '{"type": "step", "time": 1e999}', '{"type": ["step"], "time": 1}', '{"type": "step", "time": "x", "step": "y"}',
    '{"type": "step", "time": 1, "step": {"a": 1}, "loss": "x"}', '{"type": "start", "time": 1, "resumed_from": 1e308}',
    '{"type": "guard", "time": 1, "x\\u001b[2J": "\\u202e\\ud800"}', '{"type": "end", "time": 1, "train_seconds": -1e300}',
    '{"type": "stop", "time": 5, "reason": "\\u001b]0;x\\u0007"}', '{"type": "eval", "time": 1, "step": null, "loss": NaN}',
    "\ufeff{}", "\x1b[2J", '{"type": "step", "time": -1e17, "step": -5, "loss": 5e-324}', '{"type": {}, "time": true}',
]  # fmt: skip


def look(folder: str) -> list[str]:
    """Write the report and return all lines for people; what readers of a run's folder do, one after the other."""
    run = Path(folder)
    page = write_report(run).read_text("utf-8")
    assert not re.search(HIDDEN, page.replace("\n", "").replace("\t", ""))
    progress_of(folder)
    return main_figures(run)


def damaged(folder: str, name: str, path: list[str | int], value: Any) -> list[str]:
    """Replace one value in one file and look."""
    run = run_folder(Path(folder))
    file = run / name
    if name == "metrics.jsonl":
        events = [dict(event) for event in EVENTS]
        for event in events:
            if path[0] in event:
                event[str(path[0])] = value
        file.write_text("".join(json.dumps(event) + "\n" for event in events))
    else:
        content = yaml.safe_load(file.read_text())
        target = content
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = value
        file.write_text(json.dumps(content))  # JSON is YAML, too
    return look(folder)


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_loses_nothing_else(box: Box, tmp_path: Path, name: str, broken: str) -> None:
    run_folder(tmp_path)
    (tmp_path / name).write_bytes(BROKEN[broken])
    outcome = box.call(look, str(tmp_path))
    judge(outcome, (name, broken))
    assert outcome.code == 0
    if broken in ("text", "binary", "deep", "closed") and name not in ("deepspeed.json", "metrics.jsonl"):
        assert any(line.startswith("warning: ") and name in line for line in outcome.value), outcome.value


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_foreign_line_keeps_the_report(box: Box, tmp_path: Path, number: int) -> None:
    run_folder(tmp_path, metrics_jsonl=f"{LINES[number]}\n{FILES['metrics.jsonl']}{LINES[number]}\n")
    outcome = box.call(look, str(tmp_path))
    judge(outcome, LINES[number])
    assert outcome.code == 0
    if not LINES[number].startswith("{"):
        assert any(line.startswith("Loss: 0.25") for line in outcome.value), outcome.value
        assert any(line.startswith("warning: ") and "lines cannot be read" in line for line in outcome.value)


def _paths(name: str) -> list[list[str | int]]:
    if name == "metrics.jsonl":
        return [[key] for key in sorted({key for event in EVENTS for key in event})]
    found: list[list[str | int]] = []

    def visit(value: Any, path: list[str | int]) -> None:
        if path:
            found.append(path)
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            visit(item, [*path, key])

    visit(yaml.safe_load(FILES[name]), [])
    return found


def test_any_value_in_any_place(box: Box, tmp_path: Path) -> None:
    cases = [
        (name, path, value) for name in FILES if name != "deepspeed.json" for path in _paths(name) for value in ODD
    ]
    dice = random.Random(5)
    for name, path, value in dice.sample(cases, min(len(cases), amount(500))):
        outcome = box.call(damaged, str(tmp_path), name, path, value)
        judge(outcome, (name, path, value))
        assert outcome.code == 0, (name, path, value, outcome.text)


@given(st.integers(0, 2**32))
@fuzz(200)
def test_torn_files(box: Box, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    dice = random.Random(seed)
    folder = run_folder(tmp_path_factory.getbasetemp() / "torn")
    for name in dice.sample(list(FILES), 2):
        data = bytearray(FILES[name].encode())
        for _ in range(dice.randint(1, 5)):
            at = dice.randrange(len(data))
            data[at : at + dice.randint(0, 20)] = dice.randbytes(dice.randint(0, 20))
        (folder / name).write_bytes(data)
    outcome = box.call(look, str(folder))
    judge(outcome, seed)
    assert outcome.code == 0


def _alone(state: Path) -> dict[str, str]:
    """A machine without queues, whose list of jobs lies in ``state``."""
    return {"XDG_STATE_HOME": str(state), "PATH": "/nowhere"}


def _submissions(state: Path, *runs: object) -> None:
    path = state / "qwen-job" / "jobs.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        {"target": "slurm", "id": str(number), "name": f"job{number}", "run": run, "time": 1.0}
        for number, run in enumerate(runs)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_one_broken_run_hides_no_other_in_status(box: Box, tmp_path: Path) -> None:
    runs = [str(run_folder(tmp_path / "good"))]
    for number, (name, content) in enumerate(BROKEN.items()):
        runs.append(str(run_folder(tmp_path / f"bad{number} {name}", heartbeat=content, done_json=content)))
    os.mkfifo(run_folder(tmp_path / "pipe") / "other")
    pipe = tmp_path / "pipe" / "heartbeat"
    pipe.unlink()
    os.mkfifo(pipe)
    odd: list[object] = ["\0", "x" * 5_000, "/dev/null", "/nowhere", "", ESCAPES, 5, None, ["x"], {}]
    _submissions(tmp_path / "state", *runs, str(tmp_path / "pipe"), *odd)
    for more in ((), ("--json",)):
        outcome = box.command("status", "--all", *more, environ=_alone(tmp_path / "state"))
        judge(outcome, more)
        assert outcome.code == 0 and b"job0" in outcome.stdout
        assert sum(f"job{number}".encode() in outcome.stdout for number in range(len(runs))) == len(runs)
        if more:
            listed = json.loads(outcome.stdout)
            good = next(entry for entry in listed if entry["name"] == "job0")
            assert good["progress"]["step"] == 8 and not good["progress"]["fault"]
            assert any("heartbeat" in entry["progress"]["fault"] for entry in listed)
        else:
            assert b"warning: " in outcome.stderr and b"heartbeat" in outcome.stderr


INDEX = [
    b"", b"x", b"\0" * 500, b"[" * 25_000, b"{}\n" * 1_000, b"[1]\n", b'{"target": 1}\n', bytes(range(256)),
    b'{"target": [], "id": {}, "name": null, "run": 1, "time": "x"}\n', f'{{"time": {BIG}}}\n'.encode(),
    b'{"target": "slurm", "id": "\\u001b[2J", "name": "\\u202e", "run": "\\ud800", "time": 1}\n',
    b'{"target": "nowhere", "id": "1", "name": "x", "run": "/x", "time": 1, "more": 2}\n',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INDEX)))
def test_the_list_of_jobs(box: Box, tmp_path: Path, number: int) -> None:
    (tmp_path / "qwen-job").mkdir()
    (tmp_path / "qwen-job" / "jobs.jsonl").write_bytes(INDEX[number])
    for words in (("status", "--all"), ("status", "x"), ("logs", "x"), ("cancel", "x")):
        judge(box.command(*words, environ=_alone(tmp_path)), (words, INDEX[number]))


SWEEPS: list[Any] = [
    {}, [], None, 1, {"runs": 1}, {"runs": [1]}, {"runs": [{"folder": 1, "values": 1}]}, {"runs": [{}] * 3},
    {"runs": [{"folder": "../..", "values": {}}]}, {"runs": [{"folder": ESCAPES, "values": {ESCAPES: ESCAPES}}]},
    {"runs": [{"folder": "\0", "values": {"a": 1e308}}]}, {"runs": [{"folder": "x" * 5000, "values": {"a": [[[]]]}}]},
    {"runs": [{"folder": "good", "values": {"a": None}}, {"folder": "good", "values": {"b": 1}}]},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(SWEEPS)))
def test_a_sweep_s_list(box: Box, tmp_path: Path, number: int) -> None:
    run_folder(tmp_path / "good")
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEPS[number]))
    for more in ((), ("--json",)):
        judge(box.command("sweep", str(tmp_path), *more), SWEEPS[number], places=[str(tmp_path)])
    judge(box.command("status", str(tmp_path), environ=_alone(tmp_path)), SWEEPS[number])


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ["train.yaml", "metrics.jsonl", "deepspeed.json"])
def test_a_run_to_fit_the_plan_by(box: Box, tmp_path: Path, name: str, broken: str) -> None:
    run_folder(tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(BROKEN[broken])
    outcome = box.command("plan", "--fit", str(tmp_path / "run"))
    judge(outcome, (name, broken), places=["run"])


def test_a_log_is_shown_without_its_control_sequences(box: Box, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "logs").mkdir()
    (run / "logs" / "node-0.log").write_bytes(
        b"one\rtwo\n\x1b]0;x\x07\x1b[31mred\x1b[0m\x9b2J\xff\xe2\x80\xae\n" + "好\n".encode()
    )
    outcome = box.command("logs", str(run), environ={"XDG_STATE_HOME": str(tmp_path)})
    judge(outcome)
    assert outcome.code == 0
    assert outcome.stdout.decode() == "one\ntwo\n\\x1b]0;x\\x07red\\x9b2J\\xff\\u202e\n好\n"
    (run / "logs" / "node-0.log").unlink()
    os.mkfifo(run / "logs" / "node-0.log")
    judge(box.command("logs", str(run), environ=_alone(tmp_path)), places=["node-0.log"])


def test_numbers_that_come_out_can_be_printed_and_drawn(tmp_path: Path) -> None:
    for value in ODD:
        read = measured(value)
        assert read is None or float(f"{int(read)}.{0:04d}") <= abs(read) + 1
        assert whole(value) is None or isinstance(whole(value), int)
    (tmp_path / "x").write_text('{"a": 1}\nx\n[1]\n{"a": 2}')
    unread: list[str] = []
    assert read_lines(tmp_path / "x", unread) == [{"a": 1}, {"a": 2}]
    assert len(unread) == 1 and "2 of 4 lines" in unread[0]
    assert read_object(tmp_path / "none", unread) == {} and len(unread) == 1


def test_the_job_of_a_sweep(box: Box, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({**PINNED, "output": str(tmp_path / "out"), "sweep": {"train.learning_rate": [1e-5, 2e-5]}})
    )
    run_folder(tmp_path / "out" / "learning_rate=1e-05", heartbeat=BROKEN["deep"], done_json=BROKEN["digits"])
    outcome = box.command("sweep", "job.yaml", folder=tmp_path)
    judge(outcome)
    assert outcome.code == 0 and b"2e-05" in outcome.stdout
