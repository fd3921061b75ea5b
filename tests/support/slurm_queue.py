"""A Slurm queue of stand-ins that record what sbatch is given and play what squeue prints."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from qwen_job.cli import cli
from qwen_job.launch.slurm import log as slurm_log
from tests.jobs import PINNED

# Job IDs start at 41; --test-only accepts everything.
SBATCH = """#!/bin/bash
cat > /dev/null
case $* in *--test-only*) exit 0 ;; esac
echo "$*" >> "$LAB/sbatch.log"
echo $((40 + $(wc -l < "$LAB/sbatch.log")))
"""
SCONTROL = """#!/bin/bash
echo "PartitionName=gpu Default=YES MaxTime=1-00:00:00 State=UP"
"""
SQUEUE = '#!/bin/bash\ncat "$LAB/squeue.json"\n'


class Queue:
    """Stand-ins for Slurm's programs in a folder, next to a user's job.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"sbatch": SBATCH, "scontrol": SCONTROL, "squeue": SQUEUE}.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        self.holds()

    def holds(self, *jobs: dict[str, Any]) -> None:
        """Let squeue list these jobs; fields that are left out are those of a running job of this user."""
        known = [{"user_name": getpass.getuser(), "comment": "", "job_state": "RUNNING", **job} for job in jobs]
        (self.folder / "squeue.json").write_text(json.dumps({"jobs": known}))

    def submit(self, *words: str, **sections: Any) -> Result:
        """Submit a pinned job with these sections through the command line."""
        (self.folder / "job.yaml").write_text(yaml.safe_dump({**PINNED, **sections}))
        job = str(self.folder / "job.yaml")
        return CliRunner().invoke(cli, ["submit", job, "--target", "slurm", *words])

    @property
    def asked(self) -> list[str]:
        """The arguments of every sbatch call."""
        return (self.folder / "sbatch.log").read_text().splitlines()


def stand_in(folder: Path, patch: pytest.MonkeyPatch) -> Queue:
    """Put the queue of ``folder`` on the PATH, of nodes that see every folder, wherever this checkout lies."""
    patch.setattr(slurm_log, "seen_by_nodes", lambda *_: True)
    patch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")
    patch.setenv("LAB", str(folder))
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    return Queue(folder)
