"""hostfile.hosts from a file, from the allocation around us, and from that of a job that runs."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from qwen_job.cli import cli
from tests.jobs import PINNED


def rendered(folder: Path, hosts: Any, nodes: int = 2) -> Result:
    """Render the hostfile of a job in ``folder``."""
    cluster = {**PINNED["cluster"], "nodes": nodes}
    (folder / "job.yaml").write_text(yaml.safe_dump({**PINNED, "cluster": cluster, "hostfile": {"hosts": hosts}}))
    return CliRunner().invoke(cli, ["render", str(folder / "job.yaml"), "-t", "hostfile"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./machines", "# rack 1\ngpu1\n\ngpu2  # new\n"),
        ("machines", "gpu1 slots=2\ngpu2 slots=8\n"),
        ("machines", "\ufeffgpu1 slots=2\r\ngpu2\r\n"),
        ("./machines", "gpu[1-2]\n"),
    ],
)
def test_hosts_stand_in_a_file_beside_the_job(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "machines").write_text(text)
    assert rendered(tmp_path, name).stdout == "gpu1 slots=2\ngpu2 slots=2\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# none yet\n", "machines: names no host: write one a line"),
        ("gpu1 gpu2\n", "machines:1: 'gpu1 gpu2' is no host: write gpu01 or gpu01 slots=2"),
        ("gpu1\ngpu2 slots=1\n", "machines:2: slots=1, but cluster.gpus_per_node is 2"),
        ("gpu[2-1]\n", "machines:1: [2-1] runs backwards"),
        (None, "machines: cannot be read: No such file"),
    ],
)
def test_a_file_without_hosts_is_refused_by_field_and_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "machines").write_text(text)
    error = str(rendered(tmp_path, ["./machines"]).exception)
    assert "job.yaml:" in error and "hostfile.hosts[0]: " in error and said in error


def test_the_allocation_around_us_is_taken_by_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-02]")
    assert rendered(tmp_path, "slurm").stdout == "gpu01 slots=2\ngpu02 slots=2\n"
    monkeypatch.delenv("SLURM_JOB_NODELIST")
    assert "hostfile.hosts[0]: slurm: SLURM_JOB_NODELIST is not set" in str(rendered(tmp_path, "slurm").exception)


def test_a_job_that_runs_gives_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        {"job_id": 7, "job_state": "RUNNING", "nodes": "gpu[1-2]", "user_name": getpass.getuser()},
        {"job_id": 8, "job_state": "PENDING", "nodes": "", "user_name": getpass.getuser()},
    ]
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/bash\necho '{json.dumps({'jobs': jobs})}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert rendered(tmp_path, "slurm:7").stdout == "gpu1 slots=2\ngpu2 slots=2\n"
    for job, said in {"8": "job 8 is pending", "9": "the queue has no job 9", "x": "write the number of a job"}.items():
        assert f"hostfile.hosts[0]: slurm:{job}: {said}" in str(rendered(tmp_path, f"slurm:{job}").exception)


def test_every_run_of_a_sweep_has_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "machines").write_text("gpu7\n")
    job = {**PINNED, "hostfile": {"hosts": "./machines"}, "sweep": {"train.seed": [1, 2]}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    words = ["render", str(tmp_path / "job.yaml"), "-t", "hostfile", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert [path.read_text() for path in tmp_path.glob("out/*/hostfile")] == ["gpu7 slots=2\n"] * 2
