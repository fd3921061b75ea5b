"""What a user's shell, a site's habits or a job around the job leave behind does not change it, on a real Slurm."""

# ruff: noqa: E501 - tables

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import bundle
from tests.slurmlab import Lab

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

# What each variable does to a tool that reads it. SLURM_* as an outer job, an IDE's shell or a site's profile leaves it.
HOSTILE = {
    **{f"SLURM_{name}": value for name, value in {
        "MEM_PER_CPU": "100", "MEM_PER_NODE": "64", "MEM_PER_GPU": "10", "CPUS_PER_GPU": "9", "CPUS_PER_TASK": "13",
        "GPUS": "1", "GPUS_PER_NODE": "1", "GPUS_PER_TASK": "1", "GPUS_PER_SOCKET": "1", "GRES": "gpu:1", "STEP_GRES": "gpu:1",
        "NTASKS": "7", "NPROCS": "7", "NTASKS_PER_NODE": "7", "NTASKS_PER_GPU": "3", "NTASKS_PER_CORE": "2",
        "EXPORT_ENV": "NONE", "CPU_BIND": "map_cpu:99", "CPU_BIND_TYPE": "map_cpu:", "CPU_BIND_LIST": "99",
        "MEM_BIND": "map_mem:9", "DISTRIBUTION": "arbitrary", "HINT": "nomultithread", "HOSTFILE": "/nowhere",
        "OVERCOMMIT": "1", "OPEN_MODE": "truncate", "STDOUTMODE": "/nowhere/x", "STDERRMODE": "/nowhere/x",
        "STDINMODE": "none", "LABELIO": "1", "UNBUFFEREDIO": "1", "WAIT": "1", "KILL_BAD_EXIT": "0", "TIMELIMIT": "1",
        "PARTITION": "high", "ACCOUNT": "nobody", "QOS": "none", "RESERVATION": "none", "CONSTRAINT": "none",
        "EXCLUSIVE": "1", "EXACT": "1", "WHOLE": "1", "OVERLAP": "1", "IMMEDIATE": "1", "RESV_PORTS": "3", "TASK_PROLOG": "/no",
        "TASK_EPILOG": "/no", "PROLOG": "/no", "EPILOG": "/no", "MPI_TYPE": "none", "NETWORK": "x", "THREADS": "9",
        "THREADS_PER_CORE": "3", "WCKEY": "x", "WORKING_DIR": "/nowhere", "REMOTE_CWD": "/nowhere", "PROFILE": "all",
        "REQ_SWITCH": "1", "SPREAD_JOB": "1", "USE_MIN_NODES": "1", "DEBUG": "5", "SRUN_MULTI": "1", "CLUSTERS": "nowhere",
        "TIME_FORMAT": "%s", "BITSTR_LEN": "1", "EXIT_ERROR": "9", "EXIT_IMMEDIATE": "9", "STEP_ID": "4", "STEPID": "4",
        "STEP_NODELIST": "node9", "STEP_NUM_TASKS": "9", "SRUN_COMM_HOST": "192.0.2.1", "SRUN_COMM_PORT": "1",
        "LAUNCH_NODE_IPADDR": "192.0.2.1", "HET_SIZE": "2", "PTY_PORT": "1", "CPU_FREQ_REQ": "low", "DEPENDENCY": "singleton",
        "JOB_ID": "999999", "JOBID": "999999", "RESTART_COUNT": "5", "PROCID": "9", "NODEID": "9", "LOCALID": "9",
    }.items()},
    **{f"SQUEUE_{name}": value for name, value in {
        "FORMAT": "%A", "FORMAT2": "JobID", "STATES": "PENDING", "USERS": "nobody", "PARTITION": "high", "ACCOUNT": "x",
        "SORT": "i", "NAMES": "x", "ARRAY": "1", "QOS": "x", "PRIORITY": "1", "LICENSES": "x", "ALL": "1", "LOCAL": "1",
    }.items()},
    "SINFO_FORMAT": "%all", "SINFO_PARTITION": "none", "SACCT_FORMAT": "jobid", "SCANCEL_USER": "nobody",
    "SRUN_DEBUG": "5", "SRUN_EXPORT_ENV": "NONE", "SALLOC_GPUS": "1", "SALLOC_MEM_PER_CPU": "1",
    "BASH_ENV": "/tmp/bash_env", "ENV": "/tmp/bash_env", "CDPATH": "/", "GLOBIGNORE": "*", "GREP_OPTIONS": "-v",
    "POSIXLY_CORRECT": "1", "TMOUT": "1", "IFS": "/", "SHELLOPTS": "braceexpand:hashall:errexit:noglob:nounset",
    "BASHOPTS": "failglob:nullglob", "LC_ALL": "C", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Shanghai", "TMPDIR": "/tmp/job.4711",
    "RANK": "5", "WORLD_SIZE": "64", "LOCAL_RANK": "5", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "PET_NNODES": "9",
    "TORCHELASTIC_RUN_ID": "x", "PYTHONHOME": "/nowhere", "PYTHONINSPECT": "1", "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error", "PYTHONPATH": "/nowhere", "LD_DEBUG": "files", "LD_PRELOAD": "/lib/none.so",
    "LD_LIBRARY_PATH": "/nowhere", "NCCL_SOCKET_IFNAME": "eth9", "NCCL_DEBUG": "TRACE", "OMP_NUM_THREADS": "1",
    "OMP_PROC_BIND": "close", "CUDA_VISIBLE_DEVICES": "7", "http_proxy": "http://192.0.2.1:1", "HTTPS_PROXY": "http://192.0.2.1:1",
    "no_proxy": "x", "HF_HOME": "/nowhere", "TORCH_DISTRIBUTED_DEBUG": "DETAIL", "GLOO_SOCKET_IFNAME": "eth9",
}  # fmt: skip
# They change how words look to people, and nothing that the job reads.
OF_PEOPLE = {"LANG", "LC_ALL", "TZ", "HTTP_PROXY"}
# Differ between any two jobs. The limit of a job that backfill started is a year, for a moment or for good.
OF_EACH = {
    "QWEN_JOB_STARTED",
    "QWEN_JOB_TIME_LIMIT_SECONDS",
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
    "SLURM_TASK_PID",
}
OF_EACH |= {
    "SLURM_SRUN_COMM_PORT",
    "SLURM_STEP_LAUNCHER_PORT",
    "SLURM_LAUNCH_NODE_IPADDR",
    "SLURM_UMASK",
    "_",
    "SLURM_JOB_GID",
}
OF_THE_STEP = ("CPUs", "TRES", "Tasks", "NodeList")
PYTHON = """#!/bin/bash
env -0 > "{folder}/env.$SLURMD_NODENAME"
printf '%s\\0' "$@" > "{folder}/words.$SLURMD_NODENAME"
scontrol show step "$SLURM_JOB_ID.$SLURM_STEP_ID" -o > "{folder}/step"
echo "{{}}" > "{run}/done.json"
"""


class Job:
    """A job of two nodes whose training is a line of shell that writes down what it sees."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        folder.mkdir(parents=True)
        self.folder, self.run = folder, folder / "run"
        python = folder / "python"
        python.write_text(PYTHON.format(folder=folder, run=self.run))
        python.chmod(0o755)
        slurm = {"python": str(python), "preflight": False, "exclusive": False, **sections.pop("slurm", {})}
        sections.setdefault("cluster", {"nodes": 2, "gpus_per_node": 2})
        self.bundle = bundle(folder, "slurm", output=str(self.run), slurm=slurm, **sections)
        self.output = ""

    def complete(self, slurm: Lab, around: str = "", options: str = "", before: str = "") -> Job:
        """Submit it, after the shell's line ``before`` and inside the words ``around``, and wait for its end."""
        (self.folder / "job.sbatch").write_text(self.bundle.text)
        line = f"{before}\n{around} sbatch --parsable --output={self.folder}/out {options} {self.folder}/job.sbatch"
        said = slurm.on("ctl", line, cwd=self.folder).stdout
        job = int(said.split()[-1].split(";")[0])
        slurm.wait(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"), 60, "the end", job=job)
        self.output = (self.folder / "out").read_text()
        assert slurm.job(job)["JobState"] == "COMPLETED", self.output
        return self

    def saw(self, node: str) -> dict[str, str]:
        """Return what the training on ``node`` saw of its environment."""
        text = (self.folder / f"env.{node}").read_text().replace(str(self.folder), "FOLDER")
        pairs = (entry.partition("=") for entry in text.split("\0") if entry)
        return {name: value for name, _, value in pairs if name not in OF_EACH}

    def words(self) -> str:
        return (
            (self.folder / "words.node2").read_text().replace(str(self.folder), "FOLDER").partition("--master_port")[0]
        )

    def step(self) -> dict[str, str]:
        """Return what Slurm gave to the step."""
        return dict(word.partition("=")[::2] for word in (self.folder / "step").read_text().split() if "=" in word)


def exported(folder: Path, variables: dict[str, str]) -> str:
    """Return the option that gives a job these variables, so that sbatch's own start does not stumble over them."""
    shell = {name: os.environ[name] for name in ("PATH", "HOME")}
    text = "".join(f"{name}={value}\0" for name, value in (shell | variables).items())
    (folder / "variables").write_text(text)
    return f"--export-file={folder}/variables"


@pytest.fixture(scope="module")
def plain(slurm: Lab, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The job as a plain shell submits it."""
    folder = tmp_path_factory.mktemp("plain")
    return Job(folder / "x").complete(slurm, options=exported(folder, {}))


def test_a_hundred_variables_do_not_change_the_job(slurm: Lab, plain: Job, tmp_path: Path) -> None:
    (tmp_path / "bash_env").write_text("set -e; cd /; alias srun=false; echo noise; srun() { false; }\n")
    hostile = {**HOSTILE, "BASH_ENV": f"{tmp_path}/bash_env", "ENV": f"{tmp_path}/bash_env"}
    assert len(hostile) > 130
    job = Job(tmp_path / "x").complete(slurm, options=exported(tmp_path, hostile))
    noted = {
        word
        for line in job.output.splitlines()
        if "kept from the submitting shell" in line
        for word in line.split(":")[-1].split()
    }
    for node in ("node1", "node2"):
        before, after = plain.saw(node), job.saw(node)
        changed = {name: after.get(name) for name in {*before, *after} if before.get(name) != after.get(name)}
        assert {name: value for name, value in changed.items() if name not in noted | OF_PEOPLE} == {}
    assert job.words() == plain.words()
    assert {name: job.step()[name] for name in OF_THE_STEP} == {name: plain.step()[name] for name in OF_THE_STEP}
    assert "noise" not in job.output and "ignored" in job.output and "PYTHONHOME" in job.output


def test_a_job_inside_an_allocation_has_its_own_resources(slurm: Lab, plain: Job, tmp_path: Path) -> None:
    around = "salloc --quiet --nodes=1 --ntasks=3 --mem-per-cpu=100 --gres=gpu:1 --cpus-per-gpu=2"
    job = Job(tmp_path / "x", slurm={"gpu_request": "gres"}).complete(slurm, around=around)
    assert job.saw("node2")["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert {name: job.step()[name] for name in OF_THE_STEP} == {name: plain.step()[name] for name in OF_THE_STEP}


@pytest.mark.parametrize("export", ["NONE", "HF_TOKEN,KEPT=yes"])
def test_a_site_s_export_does_not_reach_the_training(slurm: Lab, plain: Job, tmp_path: Path, export: str) -> None:
    before = "umask 0002; export HF_TOKEN=t LOST=x"
    job = Job(tmp_path / "x", slurm={"sbatch": {"export": export}}).complete(slurm, before=before)
    saw = job.saw("node1")
    assert "LOST" not in saw and saw["PATH"] and saw["HOME"]
    assert (saw.get("HF_TOKEN"), saw.get("KEPT")) == ((None, None) if export == "NONE" else ("t", "yes"))
    assert job.words() == plain.words()
    assert {oct(path.stat().st_mode & 0o777) for path in written(job)} == {"0o664"}
    assert oct((job.run / "launch").stat().st_mode & 0o777) == "0o775"


def test_a_private_umask_holds(slurm: Lab, tmp_path: Path) -> None:
    job = Job(tmp_path / "x").complete(slurm, before="umask 0077")
    assert {oct(path.stat().st_mode & 0o777) for path in written(job)} == {"0o600"}


def test_a_failing_line_of_setup_and_a_missing_module_name_their_field(slurm: Lab, tmp_path: Path) -> None:
    for name, slurm_section, said in (
        ("setup", {"setup": ['echo "$UNSET_OF_CONDA"', "source /nowhere/activate"]}, "slurm.setup: line 2 ended"),
        ("modules", {"modules": ["cuda"]}, "slurm.modules: no 'module' command"),
    ):
        job = Job(tmp_path / name, slurm=slurm_section)
        with pytest.raises(AssertionError, match=re.escape(said)):
            job.complete(slurm)
        assert "failed with exit code 5" in job.output


def written(job: Job) -> list[Path]:
    """Return files of the run's folder that were written on the batch host and on the nodes."""
    found = [path for path in job.run.rglob("*") if path.is_file()]
    assert {"train.yaml", "node.sh", "done.json"} <= {path.name for path in found}
    return found
