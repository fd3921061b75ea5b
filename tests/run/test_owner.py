"""What a run's folder says of its job, and what is said of a folder that may not be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from qwen_job.cli.logs import logs
from qwen_job.cli.status import status
from qwen_job.errors import EnvironmentFault, UsageError
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


@pytest.fixture
def slurm_is_down(tmp_path: Path) -> None:
    """Let every command of Slurm fail, as on a machine that has the tools and no cluster."""
    for name in ("squeue", "scontrol", "sacct", "sbatch", "scancel", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\necho no cluster >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)


def local(run: Path, text: str = "target local\nuser me\n", **files: str) -> Path:
    written(run, text)
    for name, content in {"train.yaml": "", **files}.items():
        (run / name).write_text(content)
    return run


@pytest.mark.usefixtures("slurm_is_down")
def test_a_local_run_and_a_local_sweep_ask_no_cluster(tmp_path: Path) -> None:
    run = local(tmp_path / "run", **{"done.json": "{}", "heartbeat": '{"state": "done", "loss": 1.5}'})
    shown = CliRunner().invoke(status, [str(run)])
    assert (shown.exit_code, shown.stderr) == (0, "") and "1.5000" in shown.stdout
    sweep = tmp_path / "sweep"
    local(sweep / "seed=1", "target local\n", **{"done.json": "{}"})
    (sweep / "sweep.json").write_text('{"runs": [{"folder": "seed=1"}, {"folder": "seed=2"}]}')
    shown = CliRunner().invoke(status, [str(sweep)])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [["seed=1", "done"], ["seed=2", "not"]]


@pytest.mark.usefixtures("slurm_is_down")
def test_a_name_that_nothing_here_knows_is_said_beside_the_silent_queue() -> None:
    for command in (status, logs):
        error = CliRunner().invoke(command, ["typo"]).exception
        assert isinstance(error, EnvironmentFault), error
        lines = str(error).splitlines()
        assert lines[0].startswith("no job 'typo': give a job's name, its ID or its run folder; a queue")
        assert lines[1].startswith("slurm: the queue is unreachable: ")


def test_the_log_of_a_local_run_is_shown_or_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    log = tmp_path / "nohup.out"
    log.write_text("step 8/8\n")
    shown = CliRunner().invoke(logs, [str(local(tmp_path / "kept", f"target local\nlog {log}\n"))])
    assert (shown.exit_code, shown.stdout) == (0, "step 8/8\n")
    local(tmp_path / "tty")
    error = CliRunner().invoke(logs, [str(tmp_path / "tty")]).exception
    assert isinstance(error, UsageError)
    assert "its output went to the terminal that started it" in str(error) and "metrics.jsonl" in str(error)
    (tmp_path / "tty" / "logs").mkdir()
    (tmp_path / "tty" / "logs" / "stacks-0.txt").touch()
    error = CliRunner().invoke(logs, [str(tmp_path / "tty")]).exception
    assert f"its folder has {tmp_path}/tty/logs/stacks-0.txt" in str(error)


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
