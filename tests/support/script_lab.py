"""Run a rendered sbatch script in bash, with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.jobs import bundle

# Each stand-in is a small program, controlled by files in $LAB.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$LAB/srun.args"
[ -e "$LAB/srun.sh" ] && . "$LAB/srun.sh"
exit "$(cat "$LAB/srun.code" 2> /dev/null || echo 0)"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$LAB/scontrol.log"
case $1 in
  show) echo host1; echo host2; [ ! -e "$LAB/job" ] || cat "$LAB/job" ;;
  ping) echo "Slurmctld(primary) at host1 is UP" ;;
  requeue) [ ! -e "$LAB/refuse" ] ;;
esac
"""
SQUEUE = """#!/bin/bash
case "$*" in
  *%x*) echo "(null)" ;;
  *%l*) cat "$LAB/limit" ;;
  *%L*) cat "$LAB/left" ;;
  *) cat "$LAB/state" 2> /dev/null || echo RUNNING ;;
esac
"""
SBATCH = """#!/bin/bash
echo "$*" >> "$LAB/sbatch.log"
[ ! -e "$LAB/no-others" ] || { echo "allocation failure: Requested node configuration is not available" >&2; exit 1; }
"""
SINFO = "#!/bin/bash\nprintf 'host%d\\n' 1 2 3 4\n"
SLEEP = "#!/bin/bash\nexit 0\n"


class ScriptLab:
    """A folder with the stand-ins, a run folder and a rendered script."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.folder, self.run_folder = folder, folder / "run"
        for name, text in {
            "srun": SRUN,
            "scontrol": SCONTROL,
            "squeue": SQUEUE,
            "sinfo": SINFO,
            "sbatch": SBATCH,
            "sleep": SLEEP,
        }.items():
            (folder / "bin").mkdir(exist_ok=True)
            path = folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        made = bundle(folder, "slurm", output=str(self.run_folder), **sections)
        self.files, self.script = made.files, made.text
        self.env = {**os.environ, "LAB": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self.env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host[1-2]", "SLURM_JOB_PARTITION": "p"}

    def ends(self, srun: int, nodes: dict[int, int] | None = None, *, attempt: int = 0, then: str = "") -> int:
        """Run the script with an srun and nodes that exit with these codes; return the script's exit code."""
        (self.folder / "srun.code").write_text(str(srun))
        lines = [
            f'echo "{code} host{rank + 1}" > "{self.run_folder}/launch/exit.7-{attempt}.{rank}"'
            for rank, code in (nodes or {}).items()
        ]
        (self.folder / "srun.sh").write_text("\n".join([*lines, then]))
        env = {**self.env, "SLURM_RESTART_COUNT": str(attempt)}
        self.done = subprocess.run(
            ["bash", "-s"], input=self.script, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        return self.done.returncode

    def checkpoint(self, step: int) -> str:
        """Return a shell command that writes a complete checkpoint."""
        folder = f"{self.run_folder}/checkpoints/step-{step}"
        return f"mkdir -p '{folder}'; echo '{{}}' > '{folder}/manifest.json'"

    @property
    def finished(self) -> str:
        """A shell command that completes the run."""
        return f"echo '{{}}' > '{self.run_folder}/done.json'"

    @property
    def said(self) -> str:
        """What the script printed."""
        return self.done.stdout

    @property
    def requeued(self) -> bool:
        """Whether the script requeued its job."""
        log = self.folder / "scontrol.log"
        return log.exists() and "requeue 7" in log.read_text()
