"""Sites with several Slurm clusters: the cluster is kept with the job. Stand-ins play the programs."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwen_job.cli import cli
from qwen_job.errors import ClusterRefused, EnvironmentFault, UsageError
from qwen_job.launch.find import find, find_live
from tests.support.slurm_queue import Queue

# Jobs of squeue-NAME.json; the heading is what squeue prints above each cluster's answer.
SQUEUE = """#!/bin/bash
echo "squeue $*" >> "$LAB/asked.log"
case "$*" in *--clusters=lost*) echo "squeue: error: 'lost' can't be reached now" >&2; exit 1 ;; esac
if [[ "$*" =~ --clusters=([a-z]+) ]]; then
  echo "CLUSTER: ${BASH_REMATCH[1]}"; cat "$LAB/squeue-${BASH_REMATCH[1]}.json"
else cat "$LAB/squeue.json"; fi
"""
SBATCH = """#!/bin/bash
script=$(cat)
case $* in *--test-only*) exit 0 ;; esac
echo "$*" >> "$LAB/sbatch.log"
case "$* $script" in *--clusters=wice*) echo "51;wice" ;; *) echo 41 ;; esac
"""
SCANCEL = '#!/bin/bash\necho "$*" >> "$LAB/scancel.log"\n'


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("LAB", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Queue(tmp_path)
    for name, text in {"squeue": SQUEUE, "sbatch": SBATCH, "scancel": SCANCEL}.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    jobs = [{"job_id": 51, "name": "tiny", "job_state": "RUNNING", "user_name": getpass.getuser()}]
    (tmp_path / "squeue-wice.json").write_text(json.dumps({"jobs": jobs}))
    return made


def test_status_and_cancel_ask_the_job_s_own_cluster(queue: Queue, tmp_path: Path) -> None:
    result = queue.submit("--set", "slurm.sbatch={clusters: wice}")
    assert result.stdout == "51\n" and "status 51@wice" in result.stderr
    for word in ("51", "51@wice", "tiny"):
        (job,) = find(word, None)
        assert (job.entry.id, job.entry.cluster, job.entry.state) == ("51", "wice", "running")
    assert CliRunner().invoke(cli, ["cancel", "tiny"]).exit_code == 0
    assert (tmp_path / "scancel.log").read_text() == "--clusters=wice 51\n"


def test_a_second_job_is_refused_and_a_follow_up_goes_to_the_same_cluster(queue: Queue) -> None:
    words = ("--set", "slurm.sbatch={clusters: 'wice,other'}", "--then", "evaluate")
    data: dict[str, Any] = {"train": "/d/a.json", "eval": "/d/b.json"}
    assert queue.submit(*words, data=data).exit_code == 0
    assert "--clusters=wice" in queue.asked[1] and "afterok:51" in queue.asked[1]
    assert isinstance(queue.submit(*words, data=data).exception, ClusterRefused)
    result = queue.submit("--after", "51", "--set", "slurm.sbatch={clusters: other}")
    assert isinstance(result.exception, UsageError) and "cluster wice" in str(result.exception)


def test_the_shell_s_cluster_is_that_of_all_commands(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "wice")
    result = queue.submit()
    assert result.stdout == "51\n" and "SLURM_CLUSTERS" in result.stderr
    assert [(job.entry.id, job.entry.cluster) for job in find(None, None)] == [("51", "wice")]
    monkeypatch.delenv("SLURM_CLUSTERS")
    assert find("tiny", None)[0].entry.state == "running"


def test_a_cluster_that_gives_no_answer_does_not_hide_the_others(queue: Queue) -> None:
    queue.submit("--set", "slurm.sbatch={clusters: wice}")
    (queue.folder / "bin" / "squeue").write_text(SQUEUE.replace("=lost", "=wice"))
    queue.holds({"job_id": 7, "name": "here"})
    assert find("here", None)[0].entry.state == "running"
    with pytest.raises(EnvironmentFault, match="slurm wice: the queue is unreachable"):
        find_live("tiny", None)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "squeue: error: resolve_ctls_from_dns_srv: Unknown host\nsqueue: error: fetch_config: lookup failed\n"
            "squeue: fatal: Could not establish a configuration source\n",
            "squeue cannot reach a cluster: Could not establish a configuration source; is slurmctld up",
        ),
        (
            "squeue: unrecognized option --json\nUsage: squeue [-A]\n  -A, --all\n",
            "unrecognized option --json); 21",
        ),
        ("\n", "no message"),
    ],
)
def test_of_what_squeue_says_only_the_reason_is_shown(queue: Queue, said: str, shown: str) -> None:
    (queue.folder / "bin" / "squeue").write_text(f"#!/bin/bash\ncat >&2 << 'E'\n{said}E\nexit 1\n")
    result = CliRunner().invoke(cli, ["status", "--target", "slurm"])
    message = str(result.exception)
    assert shown in message and "resolve_ctls" not in message and "Usage" not in message
    assert len(message) < 250


@pytest.mark.parametrize("answer", ['{"jobs": [{"job_id": "x"}]}', '{"jobs": [5]}', "JOBID PARTITION NAME", "[]"])
def test_an_answer_of_another_shape_is_a_fault_of_the_queue(queue: Queue, answer: str) -> None:
    (queue.folder / "squeue.json").write_text(answer)
    result = CliRunner().invoke(cli, ["status", "--target", "slurm"])
    assert isinstance(result.exception, EnvironmentFault)
    assert "squeue --json: unexpected output" in str(result.exception)
