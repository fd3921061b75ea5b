"""What Slurm's tools get of the user's environment: where the cluster is, and nothing that changes their answers.

Slurm reads defaults of its options from variables: ``SQUEUE_STATES=PD`` hides running jobs, ``SCANCEL_INTERACTIVE``
waits for an answer, ``SBATCH_PARTITION`` beats the script's own line. Inside an allocation there are dozens more, and
sbatch hands them on to the new job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

_OF_SLURM = (
    "SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SINFO_", "SCONTROL_", "SCANCEL_", "SRUN_",
    "SALLOC_", "SATTACH_", "SSTAT_", "SPRIO_", "SREPORT_", "SPANK_", "PMI_", "PMI2_", "PMIX_",
)  # fmt: skip
# Where the controller is, and who we are.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS"}
# The devices of an allocation.
_DEVICES = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
# Who pays and where a job runs: sites tell their users to export these. What job.yaml says comes first.
_MEANT = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_WCKEY": "wckey",
    "SBATCH_CLUSTERS": "clusters",
    "SLURM_CLUSTERS": "clusters",
}


class Shell(NamedTuple):
    """What the user's shell adds to a job: words for sbatch, and what to say about it."""

    options: tuple[str, ...]
    notes: tuple[str, ...]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment (default: our own) for a tool of Slurm, without Slurm's variables."""
    given = os.environ if given is None else given
    inside = "SLURM_JOB_ID" in given
    return {
        name: value
        for name, value in given.items()
        if name in _KEPT or not (name.startswith(_OF_SLURM) or (inside and name in _DEVICES))
    }


def clusters() -> str:
    """Return the cluster that the user's shell names for all of Slurm's commands; empty: that of this machine."""
    return os.environ.get("SLURM_CLUSTERS", "").strip()


def of_shell(written: Mapping[str, str]) -> Shell:
    """Return what the shell's variables mean for a script whose #SBATCH lines are ``written``."""
    options: dict[str, str] = {}
    notes = []
    for name, option in _MEANT.items():
        value = os.environ.get(name, "").strip()
        if not value or option in options:
            continue
        if option not in written:
            options[option] = value
            notes.append(f"{name} of your shell is used: --{option}={value}")
        elif written[option] != value:
            notes.append(f"{name}={value} of your shell is ignored: job.yaml has {option} {written[option]}")
    others = sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in _MEANT)
    if others:
        notes.append(f"ignored variables of your shell: {', '.join(others)}; what they set goes into slurm.sbatch")
    return Shell(tuple(f"--{option}={value}" for option, value in options.items()), tuple(notes))
