"""The cheapest faults of ``make chaos``: a rank that dies and a signal in one job, a cancel, tries that get nowhere."""

from __future__ import annotations

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
    assert "exit code 137" in rough.output and "exit code 160, signal USR1" in rough.output


def test_a_users_cancel_is_not_requeued(slurm: Lab, tmp_path: Path) -> None:
    run = Run(slurm, tmp_path / "cancelled", **stand_in(tmp_path, f"touch {tmp_path}/begun; sleep 300")).submit()
    slurm.wait((tmp_path / "begun").exists, 30, "the job runs", job=run.job)
    slurm.on("ctl", ["scancel", str(run.job)])
    assert run.wait_end(60) == "CANCELLED"
    assert slurm.job(run.job)["Restarts"] == "0"
    assert "requeueing from" not in run.output


def test_tries_without_a_newer_checkpoint_end_with_their_own_code(slurm: Lab, tmp_path: Path) -> None:
    run = Run(slurm, tmp_path / "stuck", **stand_in(tmp_path, "exit 137"), retry__max_without_progress=2).submit()
    assert run.wait_end(120) == "FAILED"
    job = slurm.job(run.job)
    assert (job["ExitCode"], job["Restarts"]) == ("8:0", "1"), run.output
    assert "gave up: 2 tries without a newer checkpoint than -1 (last exit code 137)" in run.output
