"""What Slurm's tools get of a shell full of variables, and what of it is meant."""

from __future__ import annotations

import pytest

from qwen_job.launch.slurm.user_environment import environment, of_shell


@pytest.mark.parametrize(
    "name",
    ["SQUEUE_STATES", "SBATCH_EXPORT", "SLURM_MEM_PER_CPU", "SACCT_FORMAT", "SINFO_FORMAT", "SCONTROL_ALL", "SRUN_X",
     "SCANCEL_INTERACTIVE", "SALLOC_X", "SPANK_X", "SLURM_CLUSTERS", "SLURM_JOB_ID", "SLURM_EXPORT_ENV", "PMIX_RANK"],
)  # fmt: skip
def test_slurm_s_variables_are_left_out(name: str) -> None:
    assert environment({name: "x", "HOME": "/h"}) == {"HOME": "/h"}


def test_where_the_cluster_is_and_who_we_are_is_kept() -> None:
    kept = {"SLURM_CONF": "/c", "SLURM_JWT": "t", "SLURM_CONF_SERVER": "s", "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "3"}
    assert environment(kept) == kept


def test_devices_of_an_allocation_are_not_those_of_the_job_it_submits() -> None:
    assert environment({"SLURM_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3"}) == {}


def test_job_yaml_comes_before_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SBATCH_ACCOUNT": "a",
        "SBATCH_QOS": "q",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_CLUSTERS": "c",
    }.items():
        monkeypatch.setenv(name, value)
    told = of_shell({"account": "b", "qos": "q"})
    assert told.options == ("--clusters=c",)
    assert [" ".join(note.split()[:2]).partition("=")[0] for note in told.notes] == [
        "ignoring SBATCH_ACCOUNT",
        "using SLURM_CLUSTERS",
        "ignoring SBATCH_TIMELIMIT",
    ]
    assert "SBATCH_TIMELIMIT" in told.notes[2] and not any("SBATCH_QOS" in note for note in told.notes)
