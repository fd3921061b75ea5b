"""The lab behaves like a cluster: separate hosts, GPUs, queues, power cuts; and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurmlab import Lab, LabError
from tests.slurmlab.__main__ import main
from tests.slurmlab.config import SSH_PORT
from tests.slurmlab.hosts import wait_for

pytestmark = pytest.mark.slurm


def test_two_nodes_are_two_hosts(slurm: Lab) -> None:
    words = slurm.on("ctl", ["srun", "--nodes=2", "hostname"]).stdout.split()
    assert sorted(words) == ["node1", "node2"]


def test_gpus_are_given_to_a_job_by_number(slurm: Lab) -> None:
    shown = slurm.on("ctl", "srun --gpus-per-node=2 printenv CUDA_VISIBLE_DEVICES").stdout
    assert shown == "0,1\n"


def test_each_node_has_its_own_tmp_and_shares_the_tests_folder(slurm: Lab, tmp_path: Path) -> None:
    slurm.on("node1", f"touch /tmp/mine /dev/shm/mine {tmp_path}/ours")
    seen = slurm.on("node2", f"ls /tmp/mine /dev/shm/mine {tmp_path}/ours", check=False)
    assert seen.stdout == f"{tmp_path}/ours\n"
    assert not Path("/tmp/mine").exists()


def test_a_command_keeps_its_folder_environment_and_exit_code(slurm: Lab, tmp_path: Path) -> None:
    done = slurm.on("node1", 'pwd; printf %s "$WORD"; exit 7', cwd=tmp_path, env={"WORD": "a  'b"}, check=False)
    assert (done.stdout, done.returncode) == (f"{tmp_path}\na  'b", 7)
    with pytest.raises(LabError, match="exit 7"):
        slurm.on("node1", "exit 7")


def test_a_job_runs_to_its_end_and_accounting_knows_it(slurm: Lab, tmp_path: Path) -> None:
    job = slurm.submit("#!/bin/sh\necho done on $(hostname)\n", f"--output={tmp_path}/%j.out")
    slurm.wait_job(job, "COMPLETED", timeout=30)
    assert (tmp_path / f"{job}.out").read_text().startswith("done on node")
    assert f"{job}|COMPLETED" in slurm.on("ctl", f"sacct -c -n -P -o jobid,state -j {job}").stdout


def test_a_failed_job_is_reported_at_once_with_its_output(slurm: Lab, tmp_path: Path) -> None:
    job = slurm.submit("#!/bin/sh\necho broken pipe dream; exit 3\n", f"--output={tmp_path}/out")
    with pytest.raises(LabError, match=r"is FAILED, not COMPLETED(.|\n)*broken pipe dream"):
        slurm.wait_job(job, "COMPLETED", timeout=30)


def test_the_high_partition_preempts_and_the_job_comes_back(slurm: Lab, tmp_path: Path) -> None:
    low = slurm.submit("#!/bin/sh\nsleep 60\n", "--exclusive", "--nodes=2", f"--output={tmp_path}/low")
    slurm.wait_job(low, "RUNNING", timeout=20)
    high = slurm.submit("#!/bin/sh\ntrue\n", "--partition=high", "--nodes=2", f"--output={tmp_path}/high")
    slurm.wait_job(high, "COMPLETED", timeout=40)
    assert slurm.job(low)["Restarts"] == "1"
    slurm.on("ctl", ["scancel", str(low)])


def test_a_host_without_network_is_not_reached(slurm: Lab) -> None:
    greet = "exec 3<>/dev/tcp/node1/6818"
    slurm.on("node2", greet)
    slurm.cut("node1")
    try:
        assert slurm.on("node2", f"timeout 1 bash -c '{greet}'", check=False).returncode
    finally:
        slurm.restore("node1")
    slurm.wait(
        lambda: slurm.on("node2", f"timeout 1 bash -c '{greet}'", check=False).returncode == 0,
        10,
        "node1 answers",
    )


def test_sbatch_refuses_what_the_cluster_does_not_have(slurm: Lab) -> None:
    with pytest.raises(LabError, match="Requested node configuration is not available"):
        slurm.submit("#!/bin/sh\ntrue\n", "--test-only", "--gpus-per-node=9")


def test_a_node_that_loses_power_fails_its_job_which_starts_again(
    make_slurm: Callable[..., Lab], tmp_path: Path
) -> None:
    lab = make_slurm(2)
    script = "#!/bin/sh\n[ ${SLURM_RESTART_COUNT:-0} = 1 ] || sleep 300\n"
    job = lab.submit(script, "--nodes=2", "--requeue", "--open-mode=append", f"--output={tmp_path}/out")
    lab.wait_job(job, "RUNNING", timeout=20)
    lab.crash("node2")
    lab.wait(lambda: lab.job(job)["Restarts"] == "1", 60, "the job is requeued", job=job)
    lab.boot("node2")
    lab.wait_job(job, "COMPLETED", timeout=60)
    assert "NODE_FAIL" in (lab.root / "log/jobcomp.txt").read_text()
    lab.stop_controller()
    assert lab.on("ctl", ["squeue"], check=False).returncode
    lab.start_controller()
    assert lab.on("ctl", ["squeue"]).returncode == 0
    lab.down()
    assert not lab.root.exists()


def test_ssh_and_pdsh_between_the_nodes(make_slurm: Callable[..., Lab]) -> None:
    lab = make_slurm(2, ssh=True)
    port = ["-p", str(SSH_PORT)]
    assert lab.on("node1", ["ssh", *port, "node2", "hostname"]).stdout == "node2\n"
    env = {"PDSH_SSH_ARGS_APPEND": " ".join(port)}
    said = lab.on("node2", ["pdsh", "-R", "ssh", "-w", "node1,node2", "hostname"], env=env).stdout.splitlines()
    assert sorted(said) == ["node1: node1", "node2: node2"]


def test_a_killed_test_run_takes_its_lab_along(checkout: Path) -> None:
    program = (
        "from tests.slurmlab import Lab; lab = Lab(1).up()\n"
        "print(lab.hosts.pid('node1'), lab.root, flush=True); input()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    pid, root = run.stdout.readline().split()
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=10)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10, "the node's process is gone")
    assert Path(root).exists()

    def swept() -> bool:
        Lab(1).down()  # a new lab removes old folders first
        return not Path(root).exists()

    wait_for(swept, 10, "the folder is removed once the switch is gone, too")


def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    root = ["--root", f"/tmp/qwen-job-cli-{os.getpid()}"]
    assert main([*root, "up", "1"]) == 0
    try:
        assert main([*root, "up", "1"]) == 1
        assert "is already running" in capfd.readouterr().err
        assert main([*root, "on", "ctl", "srun", "hostname"]) == 0
        assert capfd.readouterr().out.endswith("node1\n")
        assert main([*root, "crash", "node1"]) == 0
        assert main([*root, "on", "node1", "true"]) == 1
        assert "node1 is not running" in capfd.readouterr().err
    finally:
        assert main([*root, "down"]) == 0
    assert main([*root, "down"]) == 1
