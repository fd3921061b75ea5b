"""Backend slurm: sbatch underneath."""

from __future__ import annotations

import shutil
import subprocess
import sys

from qwen_job.errors import ClusterRefused, EnvironmentFault
from qwen_job.render.bundle import Bundle


def submit(bundle: Bundle) -> int:
    """Hand the script to sbatch and print the job's id. Errors: :class:`ClusterRefused` with sbatch's own words."""
    if shutil.which("sbatch") is None:
        raise EnvironmentFault(
            "sbatch: not on this machine; run this on a login node, or carry the script of 'render' there"
        )
    done = subprocess.run(["sbatch", "--parsable"], input=bundle.text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterRefused(" ".join(line.removeprefix("sbatch: ") for line in done.stderr.splitlines()))
    sys.stdout.write(done.stdout.split(";")[0].strip() + "\n")
    return 0
