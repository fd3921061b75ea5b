"""What a real sbatch reads back from the #SBATCH lines that we write."""

from __future__ import annotations

import json

import pytest

from qwen_job.render.quote import sbatch
from tests.slurmlab import Lab

pytestmark = pytest.mark.slurm

VALUES = [
    "a # b",
    "quotes \" and ' and `id`",
    "back\\slash \\n \\\\",
    "$(touch canary) $HOME ${X}",
    "中文 和 emoji 😀",
    "hetjob",
    "--nodes=99",
    "=a,b;c&d|e",
    "x" * 1000,
]


def test_sbatch_reads_back_every_value(slurm: Lab) -> None:
    """All values go through one job's --comment in turn, held so that nothing runs."""
    for value in VALUES:
        script = f"#!/bin/bash\n#SBATCH --hold\n#SBATCH --comment={sbatch(value)}\n#SBATCH --output=/dev/null\ntrue\n"
        job = slurm.submit(script)
        queue = json.loads(slurm.on("ctl", ["squeue", "--json"]).stdout)
        comments = [entry["comment"] for entry in queue["jobs"] if entry["job_id"] == job]
        slurm.on("ctl", ["scancel", str(job)])
        assert comments == [value]
