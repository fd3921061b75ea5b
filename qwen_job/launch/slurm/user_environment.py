"""The environment for Slurm's tools: how to reach the cluster, and nothing that changes their output.

Slurm takes defaults of its options from variables: ``SQUEUE_STATES=PD`` hides running jobs, ``SCANCEL_INTERACTIVE``
asks for confirmation, ``SBATCH_PARTITION`` overrides the script's own line. An allocation sets dozens more, and sbatch
passes them on to the new job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

_OF_SLURM = (
    "SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SACCTMGR_", "SINFO_", "SCONTROL_", "SCANCEL_", "SRUN_",
    "SALLOC_", "SATTACH_", "SSTAT_", "SPRIO_", "SREPORT_", "SPANK_", "PMI_", "PMI2_", "PMIX_",
)  # fmt: skip
# How to reach the controller, and how to authenticate.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS"}
# An allocation's devices.
_DEVICES = {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
# Account and placement: many sites ask their users to export these. job.yaml overrides them.
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
    """What the user's shell adds to a job: options for sbatch, and notes for the user."""

    options: tuple[str, ...]
    notes: tuple[str, ...]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return ``given`` (default: our own environment) for Slurm's tools, without the variables that configure them."""
    given = os.environ if given is None else given
    inside = "SLURM_JOB_ID" in given
    return {
        name: value
        for name, value in given.items()
        if name in _KEPT or not (name.startswith(_OF_SLURM) or (inside and name in _DEVICES))
    }


def clusters() -> str:
    """Return the cluster that the user's shell sets for Slurm's commands; empty means this machine's."""
    return os.environ.get("SLURM_CLUSTERS", "").strip()


def of_shell(written: Mapping[str, str]) -> Shell:
    """Return what the shell's variables add to a script whose #SBATCH lines are ``written``."""
    options: dict[str, str] = {}
    notes = []
    for name, option in _MEANT.items():
        value = os.environ.get(name, "").strip()
        if not value or option in options:
            continue
        if option not in written:
            options[option] = value
            notes.append(f"using {name} from your shell: --{option}={value}")
        elif written[option] != value:
            notes.append(f"ignoring {name}={value} from your shell: job.yaml has {option} {written[option]}")
    others = sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in _MEANT)
    if others:
        notes.append(f"ignoring {', '.join(others)} from your shell; set these options in slurm.sbatch")
    return Shell(tuple(f"--{option}={value}" for option, value in options.items()), tuple(notes))
