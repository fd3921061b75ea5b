"""The cheapest faults of ``make chaos``: a rank that dies and a signal in one job, a cancel, tries that get nowhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.chaos.run import Run
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.slow]


def stand_in(folder: Path, body: str) -> dict[str, object]:
    """Return the settings of a job whose Python is a shell script: what the sbatch script does is looked at alone."""
    python = folder / "python"
    python.write_text(f"#!/bin/bash\n{body}\n")
    python.chmod(0o755)
    return {"slurm__python": python, "slurm__preflight": "false"}


def trained(run: Path) -> str:
    """Return the shell line that stands for a training that completes."""
    return f"touch {run}/run/done.json"


def test_a_killed_rank_and_a_signal_leave_no_trace_in_the_weights(slurm: Lab, tmp_path: Path) -> None:
    calm = Run(slurm, tmp_path / "calm", train__max_steps=24).submit()
    assert calm.wait_end() == "COMPLETED", calm.output[-3000:]
    rough = Run(slurm, tmp_path / "rough", train__max_steps=24).submit()
    rough.wait_step(7)
    rough.kill_rank(1)
    rough.wait_line("start", 2)
    rough.wait_step(12)
    slurm.on("ctl", ["scancel", "--batch", "--signal=USR1", str(rough.job)])
    assert rough.wait_end() == "COMPLETED", rough.output[-3000:]
    assert rough.judge(calm).attempts == 3
    assert "restarting all ranks in place (1 of 3 without a newer checkpoint)" in rough.output
    assert "exit code 160, signal USR1" in rough.output
    assert "socket.cpp" not in rough.output, "torch warns of names that the lab's hosts do not know"


def test_a_users_cancel_is_not_requeued(slurm: Lab, tmp_path: Path) -> None:
    run = Run(slurm, tmp_path / "cancelled", **stand_in(tmp_path, f"touch {tmp_path}/begun; sleep 300")).submit()
    slurm.wait((tmp_path / "begun").exists, 30, "the job runs", job=run.job)
    slurm.on("ctl", ["scancel", str(run.job)])
    assert run.wait_end(60) == "CANCELLED"
    assert slurm.job(run.job)["Restarts"] == "0"
    assert "requeueing from" not in run.output


# Runs on the node, whose loopback is not that of the machine: each line of its output is what it was sent.
WEBHOOK = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.rfile.read(int(self.headers["Content-Length"])).decode(), flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
# What Python runs first: each rank is killed at once, as by a kernel short of memory. The warm process forks the
# store in which the ranks meet before them.
KILLER = """
import os, signal, sys
forks = []
def die():
    if len(forks) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
if "qwen_job.train" in sys.orig_argv:
    os.register_at_fork(before=lambda: forks.append(1), after_in_child=die)
"""


def test_tries_without_a_newer_checkpoint_end_with_their_own_code_and_are_heard_of(slurm: Lab, tmp_path: Path) -> None:
    """Each rank is killed at once, in both attempts; all else is real."""
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    settings = stand_in(tmp_path, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    settings |= {"retry__max_without_progress": 2, "retry__in_place": 0, "cluster__nodes": 1}
    with slurm.popen("node1", [sys.executable, "-c", WEBHOOK]) as webhook:
        try:
            assert webhook.stdout is not None
            (tmp_path / "address").write_text(f"http://127.0.0.1:{int(webhook.stdout.readline())}/hook\n")
            settings["notify"] = f"[{{kind: json, url: 'file:{tmp_path}/address', events: [start, fault, give_up]}}]"
            run = Run(slurm, tmp_path / "stuck", **settings).submit()
            assert run.wait_end(120) == "FAILED"
            job = slurm.job(run.job)
        finally:
            webhook.kill()
        heard = [json.loads(line) for line in webhook.stdout]
    assert (job["ExitCode"], job["Restarts"]) == ("8:0", "1"), run.output
    assert "gave up: 2 attempts in a row wrote no checkpoint after step -1 (last exit code 137)" in run.output
    assert [one["event"] for one in heard] == ["start", "fault", "give_up"], run.output
    assert "exit code 137" in heard[-1]["reason"]


def test_a_signal_before_training_requeues_the_job_and_is_not_counted(slurm: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    begun = f"{tmp_path}/begun-$(uname -n)"
    check = f"[ -e {begun} ] || {{ touch {begun}; exec sleep 300; }}"
    python = stand_in(tmp_path, f'if [ "$3" = node ]; then {check}; else {trained(folder)}; fi')
    run = Run(slurm, folder, **{**python, "slurm__preflight": "true"}, retry__max_without_progress=1).submit()
    slurm.wait(lambda: len(list(tmp_path.glob("begun-*"))) == 2, 30, "the checks run", job=run.job)
    slurm.on("ctl", ["scancel", "--batch", "--signal=USR1", str(run.job)])
    assert run.wait_end(120) == "COMPLETED", run.output
    assert slurm.job(run.job)["Restarts"] == "1"
    assert "requeueing from checkpoint -1 (exit code 160, signal USR1)" in run.output
    assert "signal TERM" not in run.output and "Terminated" not in run.output


def test_the_partition_s_own_time_limit_is_learnt_and_loses_nothing(slurm: Lab, tmp_path: Path) -> None:
    slurm.on("ctl", "scontrol create PartitionName=brief Nodes=ALL DefaultTime=2 MaxTime=10")
    folder = tmp_path / "brief"
    save = f"n={folder}/run/checkpoints/step-5; mkdir -p $n; echo {{}} > $n/manifest.json; exit 160"
    first = f"echo $QWEN_JOB_TIME_LIMIT_SECONDS > {tmp_path}/begun; trap '{save}' USR1; sleep 300 & wait"
    body = f"if [ -e {tmp_path}/begun ]; then {trained(folder)}; else {first}; fi"
    settings = {"slurm__partition": "brief", "slurm__signal_seconds": 30, "cluster__nodes": 1}
    run = Run(slurm, folder, **stand_in(tmp_path, body), **settings).submit()
    assert run.wait_end(200) == "COMPLETED", run.output
    assert slurm.job(run.job)["Restarts"] == "1"
    assert "requeueing from checkpoint 5 (exit code 160, signal USR1)" in run.output
    assert 90 < int((tmp_path / "begun").read_text()) <= 120


def test_an_extended_time_limit_reaches_the_nodes(slurm: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "extended"
    wait = f"touch {tmp_path}/begun; until [ -e {folder}/run/launch/ends_at ]; do sleep 0.2; done"
    settings = {**stand_in(tmp_path, f"{wait}; {trained(folder)}"), "slurm__time": "5m", "cluster__nodes": 1}
    run = Run(slurm, folder, **settings).submit()
    slurm.wait((tmp_path / "begun").exists, 60, "the job runs", job=run.job)
    slurm.on("ctl", ["scontrol", "update", f"JobId={run.job}", "TimeLimit=2:00:00"])
    assert run.wait_end(120) == "COMPLETED", run.output
    ends_at, started = map(int, (folder / "run" / "launch" / "ends_at").read_text().split())
    assert abs(ends_at - started - 7200) < 60


def test_a_users_error_on_one_node_ends_the_job_with_its_code(slurm: Lab, tmp_path: Path) -> None:
    body = "[ $(uname -n) = node1 ] || exit 4; trap 'exit 128' TERM; sleep 300 & wait"
    run = Run(slurm, tmp_path / "wrong", **stand_in(tmp_path, body)).submit()
    assert run.wait_end(120) == "FAILED"
    job = slurm.job(run.job)
    assert (job["ExitCode"], job["Restarts"]) == ("4:0", "0"), run.output


def test_retries_are_bounded_though_every_try_saves(slurm: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "often"
    save = f"n={folder}/run/checkpoints/step-$(date +%s); mkdir -p $n; echo {{}} > $n/manifest.json; exit 160"
    run = Run(slurm, folder, **stand_in(tmp_path, save), retry__max_retries=1)
    assert run.submit().wait_end(120) == "FAILED"
    assert slurm.job(run.job)["Restarts"] == "1"
    assert "gave up: requeued 1 times (retry.max_retries)" in run.output


def test_of_two_jobs_that_start_with_one_output_the_second_is_told_the_first_ones_number(
    slurm: Lab, tmp_path: Path
) -> None:
    folder, begun = tmp_path / "shared", tmp_path / "begun"
    body = f"touch {begun}; for i in $(seq 300); do sleep 0.1; [ -e {tmp_path}/go ] && break; done; {trained(folder)}"
    settings = {**stand_in(tmp_path, body), "cluster__nodes": 1, "slurm__sbatch": "{comment: mine}"}
    runs = [Run(slurm, folder, **settings).submit() for _ in range(2)]
    slurm.wait(begun.exists, 60, "one of them runs")
    # The other one has ended while this one still runs.
    slurm.wait(lambda: "FAILED" in [run.state() for run in runs], 60, "one of them is refused")
    (tmp_path / "go").touch()
    states = {run.wait_end(60): run for run in runs}
    assert set(states) == {"COMPLETED", "FAILED"}
    assert slurm.job(states["FAILED"].job)["ExitCode"] == "2:0"
    assert f"output: job {states['COMPLETED'].job} is using" in states["FAILED"].output
